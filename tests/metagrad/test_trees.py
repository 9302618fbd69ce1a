"""Trees themselves; what they are for is in test_silent_faults.py."""

from typing import Any

import numpy as np
import torch

from metagrad.trees import Fingerprint, map_tensors, random_state, tensors


def test_mapping_gives_a_new_tree_and_leaves_the_old_one():
    tree = {"x": [torch.zeros(2), (torch.ones(3), None)], "n": 4}
    assert map_tensors(torch.numel, tree) == {"x": [2, (3, None)], "n": 4}
    assert [len(x) for x in tensors(tree)] == [2, 3]


def test_a_fingerprint_copes_with_anything():
    loop: list[Any] = [torch.zeros(2), None]
    loop[1] = loop
    odd = [loop, torch.zeros(0), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64).conj(), object(), len]
    odd += [torch.zeros(2, device="meta"), np.zeros((2, 2))[:, 0], np.array(["a"]), torch, type, np.float32(1.0)]
    assert Fingerprint(odd).is_kept()


def test_a_draw_from_a_global_generator_is_seen_and_one_from_an_own_is_not():
    device = torch.device("cpu")
    before = random_state(device)
    torch.rand(1, generator=torch.Generator())
    assert random_state(device) == before
    torch.rand(1)
    assert random_state(device) != before
