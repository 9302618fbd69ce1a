import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.errors import ConfigurationError
from metagrad.meta_parameters import (
    MetaParameter,
    MetaVector,
    fixed,
    hyperparameters,
    init_eta,
    learnt_names,
    learnt_slices,
    shown,
)

BOUND = st.floats(-100.0, 100.0)


@st.composite
def learnt_parameters(draw):
    low = draw(BOUND)
    high = low + draw(st.floats(0.01, 100.0))
    initial = low + (high - low) * draw(st.floats(0.001, 0.999))
    return MetaParameter(initial=initial, low=low, high=high)


@given(st.lists(learnt_parameters(), min_size=1, max_size=5))
def test_init_round_trip(parameters):
    declaration = {f"parameter_{i}": parameter for i, parameter in enumerate(parameters)}
    eta = init_eta(declaration, torch.float64)
    values = hyperparameters(declaration, eta)
    assert tuple(values) == learnt_names(declaration) == tuple(declaration)
    for name, parameter in declaration.items():
        scale = max(abs(parameter.low), abs(parameter.high))
        assert values[name].shape == (1,)
        assert values[name].item() == pytest.approx(parameter.initial, rel=1e-9, abs=1e-12 * scale)


@given(learnt_parameters(), st.floats(-1e6, 1e6), st.sampled_from([torch.float32, torch.float64]))
def test_values_stay_within_bounds_for_any_eta(parameter, eta, dtype):
    value = hyperparameters({"x": parameter}, torch.tensor([eta], dtype=dtype))["x"].item()
    slack = torch.finfo(dtype).eps * 4 * max(abs(parameter.low), abs(parameter.high))
    assert parameter.low - slack <= value <= parameter.high + slack


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_discount_never_leaves_the_unit_interval(eta):
    value = hyperparameters({"gamma": MetaParameter(initial=0.5)}, torch.tensor([eta]))["gamma"].item()
    assert 0.0 <= value <= 1.0


def test_sigmoid_by_hand():
    declaration = {"gamma": MetaParameter(initial=0.95, low=0.9, high=1.0), "lambda": MetaParameter(initial=0.8)}
    eta = init_eta(declaration, torch.float64)
    assert eta.tolist() == pytest.approx([0.0, math.log(4.0)], abs=1e-12)
    values = hyperparameters(declaration, torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert values["gamma"].item() == pytest.approx(0.9 + 0.1 / (1.0 + math.exp(-1.0)), rel=1e-15)
    assert values["lambda"].item() == pytest.approx(1.0 / (1.0 + math.exp(1.0)), rel=1e-15)


def test_fixed_parameters_are_constants_outside_eta():
    declaration = {
        "gamma": MetaParameter(initial=1.0, is_learnt=False),
        "lambda": MetaParameter(initial=0.5),
        "entropy_coefficient": MetaParameter(initial=0.0, is_learnt=False),
        "value_coefficient": MetaParameter(initial=0.25),
    }
    assert learnt_names(declaration) == ("lambda", "value_coefficient")
    eta = init_eta(declaration, torch.float64).requires_grad_()
    assert eta.shape == (2,)
    values = hyperparameters(declaration, eta)
    assert list(values) == list(declaration)
    assert [values[name].item() for name in declaration] == pytest.approx([1.0, 0.5, 0.0, 0.25])
    assert [values[name].requires_grad for name in declaration] == [False, True, False, True]
    assert all(value.dtype == torch.float64 for value in values.values())
    jacobian = torch.func.jacrev(lambda eta: torch.cat(list(hyperparameters(declaration, eta).values())))(eta.detach())
    expected = torch.zeros(4, 2, dtype=torch.float64)
    expected[1, 0], expected[3, 1] = 0.25, 0.25 * 0.75
    torch.testing.assert_close(jacobian, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial": 1.0}, "meta_parameters.*.initial = 1.0: a learnt meta-parameter starts strictly between its "
         "bounds 0.0 and 1.0; choose a value inside, or set is-learnt to False"),
        ({"initial": 0.0}, "meta_parameters.*.initial = 0.0: a learnt meta-parameter starts strictly between"),
        ({"initial": math.nan}, "meta_parameters.*.initial = nan: a learnt meta-parameter starts strictly between"),
        ({"initial": 1.5, "is_learnt": False}, "meta_parameters.*.initial = 1.5: must lie in [0.0, 1.0]; widen the "
         "bounds or choose a value inside"),
        ({"initial": -0.1, "is_learnt": False}, "meta_parameters.*.initial = -0.1: must lie in [0.0, 1.0]"),
        ({"initial": 0.5, "low": 1.0, "high": 0.0}, "meta_parameters.*.low = 1.0: must be below high = 0.0; swap"),
        ({"initial": 0.5, "low": -math.inf}, "meta_parameters.*.low = -inf: must be finite; choose a number"),
        ({"initial": 0.5, "high": math.inf}, "meta_parameters.*.high = inf: must be finite; choose a number"),
        ({"initial": 0.5, "high": math.nan}, "meta_parameters.*.high = nan: must be finite"),
        ({"initial": 1.0, "low": 1.0}, "meta_parameters.*.low = 1.0: must be below high = 1.0"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ConfigurationError) as error:
        MetaParameter(**fields)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_a_fixed_parameter_may_sit_on_its_bound(initial):
    declaration = {"x": MetaParameter(initial=initial, is_learnt=False)}
    assert hyperparameters(declaration, init_eta(declaration))["x"].item() == initial


def drawn(size):
    return MetaVector(size, lambda generator: torch.randn(size, generator=generator))


MIXED = {
    "gamma": MetaParameter(initial=0.5),
    "reward": drawn(3),
    "lambda": MetaParameter(initial=0.9, is_learnt=False),
    "critic": drawn(2),
    "entropy_coefficient": MetaParameter(initial=0.75, low=0.5, high=1.0),
}


def test_vectors_and_learnt_scalars_share_eta_in_the_order_of_the_declaration():
    assert learnt_slices(MIXED) == {
        "gamma": slice(0, 1),
        "reward": slice(1, 4),
        "critic": slice(4, 6),
        "entropy_coefficient": slice(6, 7),
    }
    assert learnt_names(MIXED) == ("gamma", "entropy_coefficient"), "a vector is no scalar"
    assert learnt_slices({"x": MetaParameter(initial=0.5, is_learnt=False)}) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_drawn_from_the_generator_one_after_the_other(dtype):
    eta = init_eta(MIXED, dtype, torch.Generator().manual_seed(5))
    assert eta.dtype == dtype
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(eta[1:4], torch.randn(3, generator=generator).to(dtype))
    assert torch.equal(eta[4:6], torch.randn(2, generator=generator).to(dtype))
    assert eta[[0, 6]].tolist() == [0.0, 0.0]
    assert torch.equal(init_eta(MIXED, dtype), init_eta(MIXED, dtype)), "without a generator always the same"
    assert not torch.equal(init_eta(MIXED, dtype), eta)
    double = MetaVector(2, lambda generator: torch.randn(2, generator=generator, dtype=torch.float64))
    assert init_eta({"reward": double}, dtype).dtype == dtype
    with pytest.raises(ConfigurationError, match=r"reward = .*declares 2 numbers and draws"):
        init_eta({"reward": MetaVector(2, lambda _: torch.zeros(3))})


def test_hyperparameters_are_differentiable_in_vectors_and_scalars_alike():
    eta = init_eta(MIXED, torch.float64, torch.Generator().manual_seed(5))
    values = hyperparameters(MIXED, eta)
    assert list(values) == list(MIXED)
    assert [len(x) for x in values.values()] == [1, 3, 1, 2, 1]
    assert torch.equal(values["reward"], eta[1:4])
    assert torch.equal(values["critic"], eta[4:6])
    jacobian = torch.func.jacrev(lambda eta: torch.cat(list(hyperparameters(MIXED, eta).values())))(eta)
    expected = torch.zeros(8, 7, dtype=torch.float64)
    for row, column, slope in ((0, 0, 0.25), (7, 6, 0.5 * 0.25), *((1 + k, 1 + k, 1.0) for k in range(3))):
        expected[row, column] = slope
    expected[5, 4] = expected[6, 5] = 1.0  # row 4 is λ, which is fixed
    torch.testing.assert_close(jacobian, expected)


def test_of_a_vector_its_norm_is_shown():
    eta = torch.tensor([0.0, 1.0, 2.0, -2.0, -5.0, 12.0, 0.0], dtype=torch.float64)
    values = shown(MIXED, eta)
    assert {name: x.item() for name, x in values.items()} == pytest.approx(
        {"gamma": 0.5, "reward_norm": 3.0, "lambda": 0.9, "critic_norm": 13.0, "entropy_coefficient": 0.75}
    )
    assert all(x.shape == (1,) for x in values.values())


@pytest.mark.parametrize(("value", "high"), [(0.5, 1.0), (1.0, 1.0), (40.0, 40.0)])
def test_a_fixed_one_keeps_its_value_and_is_not_learnt(value: float, high: float) -> None:
    assert fixed(value) == MetaParameter(initial=value, high=high, is_learnt=False)
    assert fixed(value) != MetaParameter(initial=value, high=2.0 * high, is_learnt=False)
