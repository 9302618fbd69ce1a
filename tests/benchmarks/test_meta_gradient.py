import torch

from benchmarks import meta_gradient


def test_all_forms_of_the_benchmark_give_one_meta_gradient():
    update = meta_gradient.MetaUpdate(environments=2)
    retain, recompute, reference = (update.form(name, 3)() for name in meta_gradient.FORMS)
    assert retain.abs().max() > 0
    torch.testing.assert_close(retain, reference, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(recompute, reference, rtol=1e-3, atol=1e-6)
