"""Defines the inner problem of the Markov-reward-process studies.

It is value prediction with one learnt discount for each state.

Shapes: S states, B episodes, P parameters, M = S meta-parameters, N independent unrolls. All that an episode holds are
its rewards [S]: state i comes after state i - 1 whatever happens, so the value network is evaluated once per state.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 2.1, 3.1, C.1, Table 2.
What the paper leaves open is chosen here: the input s / S, ReLU between the layers, Haiku's default initialisation (the
authors worked in JAX), losses that are means over states and episodes with the factor ½ of eq. 1.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.actors.envs.markov_reward_process import EVEN_REWARD, STATES, observe_state, sample_rewards
from metagrad.monte_carlo import Sampler
from metagrad.networks import ParameterLayout
from metagrad.optimizers import Adam, Optimizer, constant
from metagrad.unroll import InnerProblem

HIDDEN = 10  # Table 2: MLP(1, 10, 10, 1)
BATCH_SIZE = 32  # Table 2, inner and outer
INNER_LEARNING_RATE = 1e-3  # Table 2, Adam, constant
META_LEARNING_RATE = 2e-3  # Table 2, Adam
START_DISCOUNT = 0.5  # C.1

LAYOUT = ParameterLayout(
    ("weight_1", "bias_1", "weight_2", "bias_2", "weight_3", "bias_3"),
    ((HIDDEN, 1), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (1, HIDDEN), (1,)),
)


class MrpBatch(NamedTuple):
    """Holds rewards of the episodes that the next inner update sees, and of those that the outer loss at θ sees."""

    inner: Float[Tensor, "*N S B"]
    outer: Float[Tensor, "*N S B"]


def init_theta(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "P"]:
    """Draw fresh parameters: weights normal, truncated at 2 standard deviations of 1/√inputs.

    Biases are 0 (Haiku's default).
    """
    tensors = {}
    for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True):
        tensors[name] = torch.zeros(shape, dtype=dtype)
        if name.startswith("weight"):
            std = shape[1] ** -0.5
            torch.nn.init.trunc_normal_(tensors[name], std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
    return LAYOUT.flatten(tensors)


def init_eta(dtype: torch.dtype = torch.float32) -> Float[Tensor, "M"]:
    """Return η of the discounts at the start: logit(0.5) = 0 for every state."""
    return torch.full((STATES,), START_DISCOUNT, dtype=dtype).logit()


def state_values(theta: Float[Tensor, "P"]) -> Float[Tensor, "S"]:
    """Return v_θ(s) of every state: an MLP(1, 10, 10, 1) on s / S."""
    layers = LAYOUT.unflatten(theta)
    hidden = observe_state(torch.arange(STATES, device=theta.device)).to(theta.dtype)
    hidden = torch.relu(torch.nn.functional.linear(hidden, layers["weight_1"], layers["bias_1"]))
    hidden = torch.relu(torch.nn.functional.linear(hidden, layers["weight_2"], layers["bias_2"]))
    return torch.nn.functional.linear(hidden, layers["weight_3"], layers["bias_3"]).squeeze(-1)


def true_values(dtype: torch.dtype = torch.float32) -> Float[Tensor, "S"]:
    """Return the expected undiscounted sum of rewards from each state on: 0.1 for every even state still to come.

    >>> [round(float(value), 1) for value in true_values()]
    [0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0]
    """
    expected = torch.zeros(STATES, dtype=dtype)
    expected[::2] = EVEN_REWARD
    return expected.flip(0).cumsum(0).flip(0)


def discounts(eta: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """Return γ of every state: sigmoid(η)."""
    return torch.sigmoid(eta)


def inner_target(eta: Float[Tensor, "M"], rewards: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """Return g_η(sᵢ) = Σ_{j≥i} γⱼ^{j-i+1} rⱼ: a reward is weighted by powers of its own state's discount (C.1)."""
    state = torch.arange(STATES, device=eta.device)
    distance = state[None, :] - state[:, None] + 1
    # Rewards of the past have weight 0; exponent 1 there keeps derivatives finite.
    weights = (discounts(eta)[None, :] ** distance.clamp(min=1)) * (distance > 0)
    return weights @ rewards


def outer_target(rewards: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """Return g_η'(sᵢ) = Σ_{j≥i} rⱼ, the Monte-Carlo return (C.1)."""
    return rewards.flip(0).cumsum(0).flip(0)


def inner_loss(theta: Float[Tensor, "P"], eta: Float[Tensor, "M"], batch: MrpBatch) -> tuple[Float[Tensor, ""], None]:
    """Return L = ½ mean (g_η(sᵢ) - v_θ(sᵢ))² over states and episodes (eq. 1), an ordinary minimised loss."""
    return 0.5 * (inner_target(eta, batch.inner) - state_values(theta)[:, None]).square().mean(), None


def outer_loss(theta: Float[Tensor, "P"], batch: MrpBatch) -> tuple[Float[Tensor, ""], None]:
    """Return L' = ½ mean (g_η'(sᵢ) - v_θ(sᵢ))² over states and episodes (eq. 2)."""
    return 0.5 * (outer_target(batch.outer) - state_values(theta)[:, None]).square().mean(), None


def inner_problem(learning_rate: float = INNER_LEARNING_RATE) -> InnerProblem:
    """Return the loss above under Adam with a constant step size."""
    return InnerProblem(inner_loss, Adam(learning_rate=constant(learning_rate)))


def meta_optimizer(learning_rate: float = META_LEARNING_RATE) -> Optimizer:
    """Return Adam on η."""
    return Adam(learning_rate=constant(learning_rate))


def batch_sampler(
    generator: torch.Generator,
    is_outer_fresh: bool = True,
    is_averaged: bool = False,
    batch_size: int = BATCH_SIZE,
    dtype: torch.dtype = torch.float32,
) -> Sampler:
    """Return a sampler of episodes for N unrolls side by side, to be called with j = 0, 1, 2 … in this order.

    Args:
        generator: where the rewards come from.
        is_outer_fresh: True: the outer loss at θⱼ sees episodes that no update up to θⱼ saw, as eq. 2's τ' and eq. 5's
            τ^(j) say (update j + 1 then sees them, eq. 5). False: those that the update to θⱼ saw, as C.1 prints.
        is_averaged: True: instead of B episodes their average, as a batch of one. Targets are linear in the rewards and
            every episode visits the same states, so ∂θ of both losses, and with them every meta-gradient, are what the
            B episodes give, at a fraction of the time. The losses themselves lack the spread of the targets then.
        batch_size: B.
        dtype: of the rewards.
    """
    last: Tensor | None = None

    def sample(theta: Float[Tensor, "N P"], j: int) -> Any:
        nonlocal last
        rewards = sample_rewards((len(theta), batch_size), generator, dtype).transpose(0, 1)
        if is_averaged:
            rewards = rewards.mean(-1, keepdim=True)
        batch = MrpBatch(rewards, rewards if is_outer_fresh or last is None else last)
        last = rewards
        return batch

    return sample
