"""Draws and steps random tabular MDPs on a torch device, where meta-gradients have exact answers.

Shapes: S states, A actions, B episodes stepped together; an asterisk stands for any number of leading dimensions.
Everything random is drawn outside the rules and handed to them: `advance` takes the uniform numbers that choose the
successors, so the rules are pure and the same on CPU and GPU.

Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", G.1 and Table 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS, DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.errors import require

START_STATE = 0
MAX_ENTRIES = 2**26  # of the transition table; half a GiB in float64
MDP_STREAM = 0x4D4450  # keeps the draws of the tables apart from every stream that is seeded with the same number


@dataclass(frozen=True, kw_only=True, slots=True)
class TabularMdpConfig(DeviceEnvironmentConfig):
    """Describes one random MDP and the length of its episodes; the defaults are the paper's (Table 2)."""

    states: int = 20
    actions: int = 5
    concentration: float = 0.001
    """Parameter of the symmetric Dirichlet of each P(.|s, a); the smaller, the closer to deterministic."""
    horizon: int = 20
    """Steps of an episode; its end is a true termination."""
    mdp_seed: int = 0
    """Selects the MDP, whatever the run's seed."""

    def __post_init__(self) -> None:
        self.require_whole("states", 1)
        self.require_whole("actions", 1)
        self.require_whole("horizon", 1, MAX_STEPS, "the paper uses 20")
        self.require_whole("mdp_seed", 0, 2**63 - 1, "use a non-negative integer")
        sizes = f"{self.states}^2 x {self.actions}"
        rule = f"a transition table has at most {MAX_ENTRIES} entries"
        is_small = self.states**2 * self.actions <= MAX_ENTRIES
        require(is_small, "env.states^2 x env.actions", sizes, rule, "lower env.states or env.actions")
        _check_concentration(self.concentration, "env.concentration")

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "TabularMdp":
        """Make B environments on `device`; neither threads nor training matter."""
        del threads, is_training
        return TabularMdp(self, batch_size, seed, device)


class TabularMdpTables(NamedTuple):
    """Holds dynamics and rewards of one MDP or of a stack of them."""

    transition: Float[Tensor, "*mdps S A S"]  # P(s'|s, a)
    reward: Float[Tensor, "*mdps S A"]


def random_mdp(
    states: int, actions: int, concentration: float, seed: int, dtype: torch.dtype = torch.float64
) -> TabularMdpTables:
    """Draw one random MDP, on the CPU; the same seed makes the same tables.

    P(.|s, a) ~ Dirichlet(c, …, c) and r(s, a) ~ U[0, 1), all independent, drawn in float64 and rounded to `dtype`.
    The stream is the tables' own: a generator that is seeded with the same number elsewhere draws other numbers.

    Raises:
        ConfigurationError: the concentration is out of [1e-9, 1e9].

    Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", G.1 (dynamics, sizes) and its
    released code (rewards).

    >>> tables = random_mdp(states=20, actions=5, concentration=0.001, seed=0)
    >>> tables.transition.shape, tables.reward.shape
    (torch.Size([20, 5, 20]), torch.Size([20, 5]))
    """
    _check_concentration(concentration, "concentration")
    entropy = int(np.random.SeedSequence((seed, MDP_STREAM)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(entropy)
    # Rewards first: a row of the Dirichlet takes a number of draws that depends on the concentration.
    reward = torch.rand((states, actions), generator=generator, dtype=torch.float64)
    transition = _dirichlet((states, actions, states), concentration, generator)
    return TabularMdpTables(transition.to(dtype), reward.to(dtype))


def _check_concentration(concentration: float, field: str) -> None:
    rule = "must lie in [1e-9, 1e9], where samples are exact to rounding"
    require(1e-9 <= concentration <= 1e9, field, concentration, rule, "the paper uses 0.001")


def _dirichlet(shape: tuple[int, ...], concentration: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Draw from a symmetric Dirichlet over the last dimension, in float64.

    A Gamma(c) number of small c underflows (c = 0.001: mostly exp(-1000) and less), and a row of zeros has no
    normalisation. So its logarithm is drawn, log Gamma(c) = log Gamma(c + 1) + log(U) / c, and normalised by a softmax.
    """
    above_one = torch._standard_gamma(torch.full(shape, concentration + 1, dtype=torch.float64), generator=generator)
    minus_log_uniform = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    return (above_one.log() - minus_log_uniform / concentration).softmax(dim=-1)


def cumulative_transition(transition: Float[Tensor, "*mdps S A S"]) -> Float[Tensor, "*mdps S A S"]:
    """Sum P(k|s, a) over k <= s' to F(s'|s, a), exactly 1 from the last state on that can be reached.

    So no number in [0, 1) lies above a row, whatever its sum was rounded to, and none falls on an impossible state.
    """
    cumulative = transition.cumsum(dim=-1).clamp(max=1)
    return cumulative.masked_fill(cumulative >= cumulative[..., -1:], 1)


def advance(
    cumulative: Float[Tensor, "*mdps S A S"],
    state: Int64[Tensor, "*batch"],
    action: Int[Tensor, "*batch"],
    uniform: Float[Tensor, "*batch"],
) -> Int64[Tensor, "*batch"]:
    """Return the successor of every (state, action) by the inverse of F: the first s' with F(s'|s, a) > u.

    The first dimensions of the batch are those of the MDPs: tables [S, A, S] serve a batch of any shape, tables
    [N, S, A, S] serve states [N, …], each row with an MDP of its own.

    Args:
        cumulative: from `cumulative_transition`.
        state: in 0..S-1.
        action: in 0..A-1; another one is an IndexError on the CPU.
        uniform: in [0, 1), one number per transition.
    """
    rows = _of_pair(cumulative, cumulative.ndim - 3, state, action)
    return (rows <= uniform[..., None]).sum(dim=-1)


def reward_of(
    reward: Float[Tensor, "*mdps S A"], state: Int64[Tensor, "*batch"], action: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return r(s, a) of every (state, action); leading dimensions are as in `advance`."""
    return _of_pair(reward, reward.ndim - 2, state, action)


def _of_pair(table: Tensor, mdp_dims: int, state: Tensor, action: Tensor) -> Tensor:
    """Return table[…, s, a], its first `mdp_dims` dimensions in step with the batch's first ones."""
    mdps = table.shape[:mdp_dims]
    is_aligned = state.shape[:mdp_dims] == mdps
    remedy = "give states [N, …] for tables [N, S, A, …]"
    require(is_aligned, "state", f"shape {tuple(state.shape)}", f"must begin with the MDPs' {tuple(mdps)}", remedy)
    sizes = enumerate(mdps)
    mdp = [torch.arange(size, device=table.device).view(-1, *[1] * (state.ndim - 1 - dim)) for dim, size in sizes]
    return table[(*mdp, state, action)]


class TabularMdpState(NamedTuple):
    """Holds B episodes."""

    state: Int64[Tensor, "B"]
    step_count: Int32[Tensor, "B"]  # steps of the episode so far


class TabularMdp(DeviceEnvironment[TabularMdpState]):
    """Steps B episodes of one random MDP with SAME_STEP autoreset; one generator, seeded by `seed`, draws successors.

    Episodes start in state 0 and terminate after `horizon` steps. Observations are one-hot float32 [B, S].
    """

    def __init__(
        self, config: TabularMdpConfig, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(
            name=f"TabularMdp-{config.states}x{config.actions}-{config.mdp_seed}",
            batch_size=batch_size,
            observation_shape=(config.states,),
            action_names=tuple(f"action {i}" for i in range(config.actions)),
            device=device,
            seed=seed,
        )
        tables = random_mdp(config.states, config.actions, config.concentration, config.mdp_seed)
        self.tables = TabularMdpTables(*(table.to(self.spec.device) for table in tables))
        self._cumulative = cumulative_transition(self.tables.transition)
        self._horizon = config.horizon
        self._one_hot = torch.eye(config.states, device=self.spec.device)

    @property
    def state(self) -> Int64[Tensor, "B"]:
        """Return a copy of the number of each episode's present state."""
        return self._running().state.clone()

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Step all B episodes; an action outside 0..A-1 is an IndexError on the CPU."""
        before = self._running()
        # As many draws whatever happens: the stream depends on the number of steps alone.
        shape, device = (self.spec.batch_size,), self.spec.device
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64, device=device)
        successor = advance(self._cumulative, before.state, action, uniform)
        reward = reward_of(self.tables.reward, before.state, action).to(torch.float32)
        step_count = before.step_count + 1
        is_terminal = step_count >= self._horizon
        self._state = TabularMdpState(
            state=successor.masked_fill(is_terminal, START_STATE), step_count=step_count.masked_fill(is_terminal, 0)
        )
        return EnvironmentStep.same_step(self.observe(), reward, is_terminal)

    def observe(self) -> Float[Tensor, "B S"]:
        """Return the observation of the present states, without stepping."""
        return self._one_hot[self._running().state]

    def _start(self) -> TabularMdpState:
        state = torch.full((self.spec.batch_size,), START_STATE, dtype=torch.int64, device=self.spec.device)
        return TabularMdpState(state=state, step_count=torch.zeros_like(state, dtype=torch.int32))
