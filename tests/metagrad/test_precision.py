"""bf16-mixed: layers in bfloat16, everything else float32, in every derivative."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from metagrad.actor_critic import A2cLoss, VtraceLoss
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import (
    ImpalaCnn,
    LinearPolicy,
    MemoryOnePair,
    Mlp,
    NatureCnn,
    Network,
    NetworkSpec,
    SnakeCnn,
    SnakeTorsoCnn,
    build_network,
)
from metagrad.optimizers import Adam
from metagrad.precision import layers_dtype, multiplies_bfloat16, resolved
from metagrad.surrogates import lvc
from metagrad.tape import recorded
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem, inner_update

CPU = torch.device("cpu")
HEADS = ("logits", "value", "outer_value")
NETWORKS: dict[str, tuple[NetworkSpec, tuple[int, ...]]] = {
    "mlp": (Mlp(hidden=64), (30,)),
    "mlp-told": (Mlp(hidden=64, gamma_embedding=8), (30,)),
    "snake": (SnakeCnn(), (6, 6, 5)),
    "snake-torso": (SnakeTorsoCnn(), (8, 8, 5)),
    "nature": (NatureCnn(hidden=64), (4, 36, 36)),
    "impala": (ImpalaCnn(hidden=32), (4, 16, 16)),
}


def observations(shape: tuple[int, ...], is_bytes: bool, *rows: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if is_bytes:
        return torch.randint(256, (*rows, *shape), generator=generator, dtype=torch.uint8)
    return scale * torch.randn(*rows, *shape, generator=generator)


def case(name: str, precision: str) -> tuple[Network, Tensor, Tensor]:
    """Return a network told γ = .9 where it needs to be, θ, and observations [8, …]."""
    spec, shape = NETWORKS[name]
    network = build_network(spec, shape, 4, True, precision).under(0.9)
    is_bytes = spec.takes is not None and spec.takes.are_bytes
    return network, network.init(torch.Generator().manual_seed(1)), observations(shape, is_bytes, 8)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_round_to_bfloat16_and_heads_come_in_the_type_of_theta(name: str) -> None:
    exact, theta, x = case(name, "float32")
    rounding, _, _ = case(name, "bf16-mixed")
    for head in HEADS:
        found, expected = (network.apply(theta, x, (head,))[head] for network in (rounding, exact))
        assert found.dtype == torch.float32
        # 8 bits in each layer: less than 2^-8 would be float32's, far more an error.
        assert 2**-14 < relative(found, expected.double()) < 2**-4


@pytest.mark.parametrize("name", NETWORKS)
def test_last_layers_see_theta_itself(name: str) -> None:
    network, theta, x = case(name, "bf16-mixed")
    places = network.layout.unflatten(torch.arange(float(network.layout.size)))
    biases = {name.split(".")[0]: place for name, place in places.items() if name.endswith("bias")}  # the last of each
    for head in HEADS:
        moved = theta.clone()
        moved[biases[head].long()] += 2.0**-12
        before, after = (network.apply(parameters, x, (head,))[head] for parameters in (theta, moved))
        torch.testing.assert_close(after - before, torch.full_like(before, 2.0**-12), rtol=0.01, atol=0.0)


def test_a_critic_tells_discounts_apart_that_are_one_in_bfloat16() -> None:
    network, theta, x = case("mlp-told", "bf16-mixed")
    values = [network.under(gamma).apply(theta, x, ("value",))["value"] for gamma in (0.995, 0.9951)]
    assert not torch.equal(*values)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_hessian_products_are_float32_and_near_float64s(name: str) -> None:
    products = {}
    for precision, dtype in (("float32", torch.float64), ("bf16-mixed", torch.float32)):
        network, theta, x = case(name, precision)
        x = x if x.dtype == torch.uint8 else x.to(dtype)
        theta = theta.to(dtype).requires_grad_()
        outputs = network.apply(theta, x, HEADS)
        loss = torch.log_softmax(outputs["logits"], -1)[:, 0].mean() + (outputs["value"] - 1.0).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        (product,) = torch.autograd.grad(gradient, theta, v)
        assert gradient.dtype == product.dtype == dtype
        products[precision] = gradient.detach(), product
    for found, expected in zip(products["bf16-mixed"], products["float32"], strict=True):
        assert 2**-14 < relative(found, expected) < 2**-3


class Normalising(nn.Module):
    """Has a buffer and a frozen layer, as a user's own module may."""

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3))
        self.frozen = nn.Linear(3, 5).requires_grad_(False)
        self.logits = nn.Linear(5, 2)
        self.writes = writes

    def forward(self, observation: Tensor, heads: object) -> dict[str, Tensor]:
        del heads
        if self.writes:
            self.get_buffer("mean").add_(1.0)
        assert observation.dtype == self.mean.dtype == self.frozen.weight.dtype
        return {"logits": self.logits(self.frozen(observation - self.mean).to(self.logits.weight.dtype))}


def test_what_is_no_part_of_theta_is_rounded_too_and_still_may_not_be_written_to() -> None:
    module = Normalising()
    network, x = Network(module, precision="bf16-mixed"), torch.randn(4, 3)
    theta = network.init(torch.Generator().manual_seed(0))
    frozen = module.frozen
    hidden = ((x - 1).bfloat16() @ frozen.weight.bfloat16().T + frozen.bias.bfloat16()).float()
    weight, bias = theta[:10].view(2, 5), theta[10:]
    found = network.apply(theta, x, ("logits",))["logits"]
    torch.testing.assert_close(found, hidden @ weight.T + bias, rtol=0.05, atol=0.05)
    assert module.frozen.weight.dtype == module.get_buffer("mean").dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"^buffers = \['mean'\]: the module writes to it"):
        Network(Normalising(writes=True), precision="bf16-mixed").apply(theta, x, ("logits",))


class WithoutNamedHeads(nn.Module):
    """Has layers of which nobody knows which is the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, observation: Tensor, heads: object) -> dict[str, Tensor]:
        del heads
        return {"logits": self.layer(observation)}


def test_heads_of_any_module_come_in_the_type_of_theta() -> None:
    network, x = Network(WithoutNamedHeads(), precision="bf16-mixed"), torch.ones(4, 3)
    theta = network.init(torch.Generator().manual_seed(0))
    found = network.apply(theta, x, ("logits",))["logits"]
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize(("spec", "shape"), [(LinearPolicy(), (3,)), (MemoryOnePair(), (5,))])
def test_networks_without_hidden_layers_refuse(spec: NetworkSpec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"^precision = 'bf16-mixed': is for hidden layers, and .* has none"):
        build_network(spec, shape, 4, False, "bf16-mixed")
    build_network(spec, shape, 4, False, "float32")


def test_auto_asks_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in ("amx_bf16", "avx512_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True})
        assert multiplies_bfloat16(CPU)
        assert resolved("auto", CPU) == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    assert resolved("auto", CPU) == "float32"
    assert resolved("bf16-mixed", CPU) == "bf16-mixed"  # slower, but it works
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert resolved("auto", torch.device("cuda")) == expected
    assert resolved("tf32", torch.device("cuda")) == "tf32"
    with pytest.raises(ConfigurationError, match=r"^precision = 'tf32': TF32 is arithmetic of CUDA devices"):
        resolved("tf32", CPU)
    assert [layers_dtype(p) for p in ("float32", "tf32", "bf16-mixed")] == [None, None, torch.bfloat16]


RATES = {
    "gamma": MetaParameter(initial=0.9),
    "lambda_": MetaParameter(initial=0.9),
    "value_coefficient": MetaParameter(initial=0.5),
    "entropy_coefficient": MetaParameter(initial=0.01),
}
CLIPS = {name: MetaParameter(initial=1.0, high=2.0) for name in ("policy_coefficient", "rho_clip", "c_clip")}
LOSSES = {"a2c": A2cLoss(**RATES), "v-trace": VtraceLoss(**RATES, **CLIPS)}


def meta_update(precision: str, loss: str, reward_scale: float, observation_scale: float) -> list[Tensor]:
    """Return gradient, next θ and ∂η of two inner updates and an outer loss."""
    losses, outer = LOSSES[loss], OuterObjective(gamma=0.99, lambda_=0.95, critic="outer")
    network = build_network(Mlp(hidden=16), (6,), 3, True, precision)
    generator = torch.Generator().manual_seed(3)
    steps, batch = 4, 8
    trajectory = Trajectory(
        observation=observations((6,), False, steps + 1, batch, scale=observation_scale),
        action=torch.randint(3, (steps, batch), generator=generator),
        reward=reward_scale * torch.randn(steps, batch, generator=generator),
        is_terminal=torch.rand(steps, batch, generator=generator) < 0.2,
        is_truncated=torch.zeros(steps, batch, dtype=torch.bool),
        valid=torch.rand(steps, batch, generator=generator) < 0.9,
        behaviour_log_prob=torch.full((steps, batch), -math.log(3.0)),
        policy_version=0,
    )
    declaration = losses.declaration((6,), 3)
    problem = InnerProblem(
        lambda theta, eta, x: losses.inner_loss(network, theta, hyperparameters(declaration, eta), x, lvc, outer),
        Adam(learning_rate=1e-2, max_gradient_norm=0.5),
    )
    eta, theta, tape = init_eta(declaration), network.init(generator), ()
    state = problem.optimizer.init(theta)
    for _ in range(2):
        update = inner_update(problem, theta, state, eta, trajectory, keep_graph=True)
        theta, state, tape = update.theta, update.state, recorded(tape, update.step)
    last = outer_gradient(lambda x, y: losses.outer_loss(network, x, {}, y, outer), theta, trajectory).gradient
    return [tape[0].gradient.detach(), theta, meta_gradient(problem, tape, [None, last], "retain").eta]


POWERS = st.integers(-6, 6)


@pytest.mark.parametrize("loss", LOSSES)
@given(reward=POWERS, observation=POWERS)
def test_finite_wherever_float32_is(loss: str, reward: int, observation: int) -> None:
    found, exact = (meta_update(p, loss, 10.0**reward, 10.0**observation) for p in ("bf16-mixed", "float32"))
    for name, x, y in zip(("gradient", "theta", "eta"), found, exact, strict=True):
        assert x.dtype == torch.float32
        assert bool(torch.isfinite(x).all() | ~torch.isfinite(y).all()), name
