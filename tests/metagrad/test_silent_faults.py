"""Inputs that gave wrong numbers without a word: each is right now, or refused in one line."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights
from metagrad.monte_carlo import LookAhead, in_chunks, unroll_gradients
from metagrad.opponent_shaping import shaping_gradients
from metagrad.optimizers import Adam, Sgd, constant
from metagrad.tape import recorded
from metagrad.unroll import InnerProblem, inner_update

PRODUCTS = ("retain", "recompute")
SGD = Sgd(learning_rate=constant(0.1))


@pytest.fixture
def unchecked_shapes():
    """As in a program without jaxtyping's import hook."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# batches of N copies


class Named(NamedTuple):
    x: Any
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    label: str = "shared"


@dataclass
class Plain:
    x: Any


class Custom:
    def __init__(self, x):
        self.x = x


CONTAINERS = {
    "list": (lambda x: [x], lambda b: b[0]),
    "tuple": (lambda x: (x, None), lambda b: b[0]),
    "dict": (lambda x: {"x": x, "k": 3}, lambda b: b["x"]),
    "ordered": (lambda x: OrderedDict(x=x), lambda b: b["x"]),
    "named tuple": (Named, lambda b: b.x),
    "dataclass": (Plain, lambda b: b.x),
    "dataclass with slots": (Slotted, lambda b: b.x),
    "nested": (lambda x: [{"a": (Named([Plain(x)]), 1.0)}, "text", None], lambda b: b[0]["a"][0].x[0].x),
}
OPAQUE = {
    "custom": (Custom, "Custom"),
    "numpy": (lambda x: x.numpy(), "numpy.ndarray"),
    "in a list": (lambda x: [Custom(x)], "Custom"),
    "user dict": (lambda x: UserDict(x=x), "collections.UserDict"),
    "set": (lambda x: {x}, "builtins.set"),
    "generator": (lambda x: (y for y in [x]), "generator"),
    "function": (lambda x: lambda: x, "builtins.function"),
}


def of_copies(wrap, get, copies=4, rows=None):
    """∂η of `copies` unrolls of L = Σ (θ - η τ)², L' = Σ (θ - 2 τ')²."""
    problem = InnerProblem(lambda theta, eta, batch: ((theta - eta * get(batch)).square().sum(), None), SGD)
    data = torch.randn(3, rows or copies, 2, generator=torch.Generator().manual_seed(0))
    theta, eta = torch.zeros(2), torch.ones(2)
    return unroll_gradients(
        problem,
        lambda theta, batch: ((theta - 2.0 * get(batch)).square().sum(), None),
        lambda _theta, j: wrap(data[j]),
        (theta, problem.optimizer.init(theta), eta),
        LookAhead(weights=(0.5, 0.5)),
        copies,
    ).eta


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_copy_sees_its_own_rows_of_a_container(name):
    assert torch.equal(of_copies(*CONTAINERS[name]), of_copies(lambda x: x, lambda b: b))


@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_taken_apart_is_refused_by_name(name):
    wrap, kind = OPAQUE[name]
    with pytest.raises(ConfigurationError, match=rf"batch = '.*{kind}': cannot be taken apart"):
        of_copies(wrap, lambda b: b)


def test_a_batch_without_a_row_for_each_copy_is_refused():
    with pytest.raises(ConfigurationError, match=r"shape \(5, 2\).* each of 4 copies"):
        of_copies(lambda x: [x], lambda b: b[0], copies=4, rows=5)


def test_a_loss_of_many_numbers_is_refused_as_in_a_single_unroll():
    problem = InnerProblem(lambda theta, eta, batch: ((theta - eta * batch).square(), None), SGD)
    start = (torch.zeros(2), SGD.init(torch.zeros(2)), torch.ones(2))
    with pytest.raises(ConfigurationError, match="a loss is one number"):
        unroll_gradients(problem, lambda t, b: (t.sum(), None), lambda theta, _j: theta, start, LookAhead((1.0,)), 3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weights": (float("nan"),)}, "weights"),
        ({"product": "retian"}, "product"),
        ({"trace": 2.0}, "trace"),
    ],
)
def test_a_look_ahead_outside_its_ranges_is_refused(changes, field, unchecked_shapes):
    problem = InnerProblem(lambda theta, eta, batch: ((theta - eta * batch).square().sum(), None), SGD)
    start = (torch.zeros(2), SGD.init(torch.zeros(2)), torch.ones(2))
    look_ahead = LookAhead(weights=(1.0,))._replace(**changes)
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        unroll_gradients(problem, lambda t, b: (t.sum(), None), lambda theta, _j: theta, start, look_ahead, 3)
    with pytest.raises(ConfigurationError, match=r"^copies = 0"):
        unroll_gradients(problem, None, None, start, LookAhead(weights=(1.0,)), 0)


@pytest.mark.parametrize(("copies", "at_once", "field"), [(10, 0, "at_once"), (10, -3, "at_once"), (-1, 2, "copies")])
def test_chunks_of_no_size_are_refused(copies, at_once, field):
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        list(in_chunks(copies, at_once))


def test_opponents_of_other_learners_are_refused(unchecked_shapes):
    problem = InnerProblem(lambda theta, eta, _batch: ((theta.sum() - eta.sum()).square(), None), SGD)
    arguments = (problem, problem.loss, lambda _theta, _j: None)
    with pytest.raises(ConfigurationError, match="one opponent for each of 3 learners"):
        shaping_gradients(*arguments, torch.zeros(6, 5), torch.zeros(3, 2), 1)
    with pytest.raises(ConfigurationError, match="product = 'retian'"):
        shaping_gradients(*arguments, torch.zeros(3, 5), torch.zeros(3, 2), 0, product="retian")


# tape and product


def quadratic(optimizer=SGD):
    return InnerProblem(lambda theta, eta, _batch: ((theta - eta).square().sum(), None), optimizer)


def unrolled(problem, batches, keep_graph, eta=None, theta=None):
    theta = torch.zeros(1) if theta is None else theta
    eta = torch.ones(1) if eta is None else eta
    state, tape = problem.optimizer.init(theta), ()
    for batch in batches:
        update = inner_update(problem, theta, state, eta, batch() if callable(batch) else batch, keep_graph)
        theta, state, tape = update.theta, update.state, recorded(tape, update.step)
    return tape


def test_the_meta_gradient_of_a_tape_without_graphs_is_never_zero():
    outer = torch.tensor([2.0])  # θ₁ = .2 η: ∂θ₁/∂η = .2, times 2
    assert meta_gradient(quadratic(), unrolled(quadratic(), [None], True), [outer], "retain").eta.item() == (
        pytest.approx(0.4)
    )
    tape = unrolled(quadratic(), [None], False)
    assert meta_gradient(quadratic(), tape, [outer], "recompute").eta.item() == pytest.approx(0.4)
    with pytest.raises(ConfigurationError, match="keep_graph=False and holds no graph"):
        meta_gradient(quadratic(), tape, [outer], "retain")
    mixed = [*unrolled(quadratic(), [None], True), *tape]
    with pytest.raises(ConfigurationError, match="step 1 of the tape was made with keep_graph=False"):
        meta_gradient(quadratic(), mixed, [None, outer], "retain")


def test_a_tape_that_lost_its_beginning_is_refused():
    tape = unrolled(quadratic(Adam(learning_rate=constant(0.1))), [None] * 6, False)
    with pytest.raises(ConfigurationError, match="keep the steps before it"):
        meta_gradient(quadratic(), tape[1:], [*[None] * 4, torch.ones(1)], "recompute")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (([torch.ones(1)], "retian"), "product"),
        (([torch.ones(1)], "retain", False, 2.0), "trace"),
        (([torch.ones(1)], "retain", False, -0.1), "trace"),
        (([torch.ones(1)], "retain", False, float("nan")), "trace"),
        (([None], "retain"), "outer_gradients"),
        (([torch.ones(1)] * 2, "retain"), r"len\(tape\)"),
        (([torch.ones(2)], "retain"), "outer_gradients"),
        (([torch.ones(())], "retain"), "outer_gradients"),
        (([torch.ones(1, dtype=torch.float64)], "retain"), "outer_gradients"),
    ],
)
def test_arguments_of_the_meta_gradient_that_do_not_fit_are_refused(arguments, field, unchecked_shapes):
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        meta_gradient(quadratic(), unrolled(quadratic(), [None], True), *arguments)


def test_an_intermediate_outer_gradient_of_one_element_does_not_broadcast(unchecked_shapes):
    problem = quadratic()
    tape = unrolled(problem, [None, None], True, torch.ones(3), torch.zeros(3))
    with pytest.raises(ConfigurationError, match=r"outer_gradients\[0\]"):
        meta_gradient(problem, tape, [torch.ones(1), torch.ones(3)], "retain")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("n_step", 3), "estimator"),
        (("n-step", -1), "n"),
        (("mix", -1), "n"),
        (("mix", 3, 1.5), "kappa"),
        (("mix", 2, -1.0), "kappa"),
        (("mix", 2, float("nan")), "kappa"),
        (("n-step", 2, 0.5), "kappa"),
    ],
)
def test_outer_weights_refuse_what_they_would_misread(arguments, field, unchecked_shapes):
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        outer_weights(*arguments)


def test_an_optimizer_that_changes_dtype_or_shape_of_theta_is_refused():
    class Widening:
        init = SGD.init

        def update(self, gradient, state, theta, eta):
            return (theta - 0.1 * gradient).double(), state

    problem = quadratic(Widening())
    with pytest.raises(ConfigurationError, match=r"optimizer\.update = \(torch\.float64, 1\)"):
        inner_update(problem, torch.zeros(1), SGD.init(torch.zeros(1)), torch.ones(1), None, keep_graph=False)


# what the adjoint pass sees again


def on_batch(get=lambda b: b):
    """L = Σ (θ τ - η)²: the Hessian depends on the batch."""
    return InnerProblem(lambda theta, eta, batch: ((theta * get(batch) - eta).square().sum(), None), SGD)


def torch_buffer():
    x = torch.zeros(1)
    return x, lambda value: x.fill_(value)


def slice_of_a_buffer():
    x = torch.zeros(3)
    return x[1:2], lambda value: x.fill_(value)


def numpy_buffer():
    x = np.zeros(1, dtype=np.float32)
    return torch.from_numpy(x), lambda value: x.fill(value)


def numpy_view_of_torch():
    x = torch.zeros(1)
    alias = x.numpy()
    return x, alias.fill


def shared_memory():
    x = torch.zeros(1).share_memory_()
    return x, lambda value: x.fill_(value)


def inference_tensor():
    with torch.inference_mode():
        x = torch.zeros(1)

    def fill(value):
        with torch.inference_mode():
            x.fill_(value)

    return x, fill


def refilled(make, product, wrap=lambda x: x, get=lambda b: b):
    buffer, fill = make()
    problem, batch = on_batch(get), wrap(buffer)

    def filled(value):
        def get_batch():
            fill(value)
            return batch

        return get_batch

    tape = unrolled(problem, [filled(1.0), filled(3.0)], product == "retain")
    return meta_gradient(problem, tape, [None, torch.ones(1)], product).eta.item()


BUFFERS = (torch_buffer, slice_of_a_buffer, numpy_buffer, numpy_view_of_torch, shared_memory)


@pytest.mark.parametrize("make", [*BUFFERS, inference_tensor])
def test_a_batch_that_was_refilled_is_refused_by_recompute(make):
    with pytest.raises(ConfigurationError, match=r"batch of step 0.*written to since"):
        refilled(make, "recompute", get=torch.clone)


@pytest.mark.parametrize("make", BUFFERS)
def test_a_batch_that_was_refilled_is_refused_by_retain(make):
    with pytest.raises((ConfigurationError, RuntimeError), match=r"written to since|modified by an inplace operation"):
        refilled(make, "retain")


@pytest.mark.parametrize(
    ("wrap", "get"),
    [
        (lambda x: [x], lambda b: b[0]),
        (lambda x: {"a": (1.0, Named(x))}, lambda b: b["a"][1].x),
        (Custom, lambda b: b.x),
        (Slotted, lambda b: b.x),
        (lambda x: Custom(Plain({"x": x})), lambda b: b.x.x["x"]),
    ],
)
@pytest.mark.parametrize("make", [torch_buffer, numpy_buffer])
def test_it_is_seen_inside_containers_and_objects(make, wrap, get):
    with pytest.raises(ConfigurationError, match=r"batch of step 0.*written to since"):
        refilled(make, "recompute", wrap, get)


@pytest.mark.parametrize("new", [lambda: torch.full((1,), 3.0), lambda: 3.0])
def test_a_container_with_new_content_is_refused(new):
    batch = {"x": torch.ones(1) if isinstance(new(), torch.Tensor) else 1.0}

    def again():
        batch["x"] = new()
        return batch

    problem = on_batch(lambda b: b["x"])
    tape = unrolled(problem, [batch, again], False)
    with pytest.raises(ConfigurationError, match=r"batch of step 0.*written to since"):
        meta_gradient(problem, tape, [None, torch.ones(1)], "recompute")


def test_a_numpy_array_in_the_batch_is_watched_too():
    array = np.ones(1, dtype=np.float32)
    problem = on_batch(torch.from_numpy)
    tape = unrolled(problem, [array], False)
    assert meta_gradient(problem, tape, [torch.ones(1)], "recompute").eta.item() == pytest.approx(0.2)
    array[0] = 2.0
    with pytest.raises(ConfigurationError, match="batch of step 0"):
        meta_gradient(problem, tape, [torch.ones(1)], "recompute")


def test_parts_of_a_buffer_that_are_written_one_after_another_are_fine():
    buffer = torch.zeros(2)

    def part(i, value):
        def get():
            buffer[i] = value
            return buffer[i : i + 1]

        return get

    problem = on_batch()
    found = meta_gradient(
        problem, unrolled(problem, [part(0, 1.0), part(1, 3.0)], False), [None, torch.ones(1)], "recompute"
    )
    batches = [torch.ones(1), torch.full((1,), 3.0)]
    expected = meta_gradient(problem, unrolled(problem, batches, True), [None, torch.ones(1)], "retain")
    assert found.eta.item() == pytest.approx(expected.eta.item())


def test_a_loss_that_changes_its_batch_is_refused():
    def loss(theta, eta, batch):
        return (theta * batch.mul_(2.0) - eta).square().sum(), None

    problem = InnerProblem(loss, SGD)
    tape = unrolled(problem, [torch.ones(1)], False)
    with pytest.raises(ConfigurationError, match=r"batch of step 0.*written to since"):
        meta_gradient(problem, tape, [torch.ones(1)], "recompute")


DRAWS = {
    "dropout": lambda _generator: torch.nn.functional.dropout(torch.ones(1), 0.5),
    "torch": lambda _generator: torch.rand(1),
    "numpy": lambda _generator: float(np.random.rand()),
    "generator in the batch": lambda generator: torch.rand(1, generator=generator),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_loss_that_draws_is_refused_by_recompute_and_right_with_retain(name):
    factors = []

    def loss(theta, eta, batch):
        factors.append(DRAWS[name](batch))
        return (theta - factors[-1] * eta).square().sum(), None

    problem = InnerProblem(loss, SGD)
    generator = torch.Generator().manual_seed(0)
    found = meta_gradient(problem, unrolled(problem, [generator], True), [torch.ones(1)], "retain").eta.item()
    assert found == pytest.approx(0.2 * float(factors[0]))
    tape = unrolled(problem, [generator], False)
    with pytest.raises(ConfigurationError, match=r"drew random numbers|written to since"):
        meta_gradient(problem, tape, [torch.ones(1)], "recompute")


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("which", ["theta", "eta", "moment"])
def test_theta_eta_and_moments_that_were_written_to_are_refused(product, which):
    problem = quadratic(Adam(learning_rate=constant(0.1)))
    theta, eta = torch.zeros(1), torch.ones(1)
    state = problem.optimizer.init(theta)
    step = inner_update(problem, theta, state, eta, None, keep_graph=product == "retain").step
    {"theta": theta, "eta": eta, "moment": state.moments[0]}[which].add_(1.0)
    with pytest.raises(ConfigurationError, match=r"of step 0.*written to since"):
        meta_gradient(problem, [step], [torch.ones(1)], product)


def test_a_tape_of_recompute_serves_again_and_outer_losses_may_be_taken_between():
    problem = on_batch()
    tape = unrolled(problem, [torch.ones(1)] * 6, False)
    outer = outer_gradient(lambda theta, _: (theta.square().sum(), None), torch.ones(1), None).gradient
    arguments = (problem, tape, [*[None] * 5, outer], "recompute")
    assert torch.equal(meta_gradient(*arguments).eta, meta_gradient(*arguments).eta)
