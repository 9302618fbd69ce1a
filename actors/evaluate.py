"""Evaluates policies: plays full-life episodes and sums raw rewards, in environments of their own."""

import math
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from metagrad.actors import policy
from metagrad.actors.envs import EnvironmentConfig
from metagrad.actors.envs.base import Environment, EnvironmentSpec, EnvironmentStep
from metagrad.actors.rollout import name_fault
from metagrad.errors import require
from metagrad.networks import Network
from metagrad.recurrence import next_state

MAX_ENVIRONMENTS = 512  # the papers' evaluation batch (Snake)
STEPS_BETWEEN_CHECKS = 16  # reads back from the device once in so many steps
MAX_EPISODE_STEPS = 30_000  # more than any environment of ours allows; some of a user's may never end by themselves


class EvaluationStopped(Exception):
    """The caller stopped the evaluation before all episodes had been played."""


class EvaluationResult(NamedTuple):
    """Holds episodes in a fixed order: the first of every environment, then the second of every one, and so on."""

    returns: list[float]  # raw rewards of the game, undiscounted
    lengths: list[int]  # steps in which the policy acted
    cut: int = 0  # episodes among them that were cut at `max_steps`, and their returns with them

    @property
    def mean(self) -> float:
        """Return the mean return."""
        return math.fsum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """Return the standard deviation of the returns, N-1 in the denominator; NaN for one episode."""
        if len(self.returns) < 2:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((x - mean) ** 2 for x in self.returns) / (len(self.returns) - 1))

    @property
    def standard_error(self) -> float:
        """Return the standard error of `mean`; NaN for one episode."""
        return self.std / math.sqrt(len(self.returns))


def evaluate(  # noqa: PLR0913 (a flat list of what is played; a structure for one call would only hide it)
    network: Network,
    theta: Float[Tensor, "P"],
    config: EnvironmentConfig,
    episodes: int,
    seed: int,
    is_greedy: bool,
    device: torch.device,
    threads: int,
    environments: int | None = None,
    max_steps: int = MAX_EPISODE_STEPS,
    is_stopped: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Play full-life episodes in environments of their own; the same arguments give the same result bit for bit.

    Every environment contributes the same number of episodes, fixed before any is played: its first ones, in order.
    (The first N to finish would favour short episodes.) Where that makes more than `episodes`, the surplus is the last
    episode of the environments with the highest indices, whatever its return.

    Args:
        network: the network that θ belongs to.
        theta: parameters of the policy; moved to `device`.
        config: the environments; Atari games end with the last life, whatever training does.
        episodes: how many to play.
        seed: not negative; seeds the games and the policy's sampling.
        is_greedy: argmax of the policy; else sampled from it.
        device: where the policy acts, and where environments that are tensor operations live.
        threads: threads of a C++ backend.
        environments: how many are stepped together, up to `episodes`; None: the fewest that need no more rounds than
            MAX_ENVIRONMENTS would.
        max_steps: an episode that has not ended after so many steps is cut and counted as it is; where its environment
            has to play another one, that is the rest of the same game.
        is_stopped: asked every few steps.

    Raises:
        ConfigurationError: episodes, seed, environments or max_steps are out of range.
        EvaluationStopped: `is_stopped` returned True.
        EnvironmentFault: an observation or reward was NaN or infinite; names environment, index and step.
    """
    require(episodes >= 1, "episodes", episodes, "must be at least 1", "give the number of episodes to play")
    require(seed >= 0, "seed", seed, "must not be negative", "use 0 or more")
    is_batch = environments is None or 1 <= environments <= episodes
    require(is_batch, "environments", environments, f"must be 1 to {episodes}, the episodes", "leave it out")
    require(max_steps >= 1, "max_steps", max_steps, "must be at least 1", "raise it")
    rounds = math.ceil(episodes / (environments or MAX_ENVIRONMENTS))
    batch_size = environments or math.ceil(episodes / rounds)
    environment_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    player = Player(network, theta.to(device), policy_seed, is_greedy)
    with closing(
        config.make(batch_size=batch_size, seed=environment_seed, device=device, threads=threads, is_training=False)
    ) as environment:
        totals = _play_rounds(environment, player, rounds, max_steps, is_stopped)
    returns, lengths, is_cut = (total.flatten()[:episodes].tolist() for total in totals)
    return EvaluationResult(returns, lengths, sum(is_cut))


class Player:
    """A policy that has its own random stream and acts on the device of θ, wherever the environments live.

    A recurrent one remembers the episodes from step to step, of which it has to be told (`see`).
    """

    def __init__(self, network: Network, theta: Float[Tensor, "P"], seed: int, is_greedy: bool) -> None:
        self._at_theta = network.at(theta)
        self._network = network
        self._state: Tensor | None = None  # before the step, of a recurrent network
        self._updated: Tensor | None = None  # after it
        self._device = theta.device
        self._generator = torch.Generator(theta.device).manual_seed(seed)
        self._is_greedy = is_greedy

    def act(self, observation: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        """Return B actions."""
        observation = observation.to(self._device)
        if self._state is None:
            self._state = self._network.fresh_state(len(observation), self._device)
        if self._is_greedy:
            decision = policy.greedy(self._at_theta, observation, self._state)
        else:
            decision = policy.sample(self._at_theta, observation, self._generator, self._state)
        self._updated = decision.state
        return decision.action

    def see(self, step: EnvironmentStep) -> None:
        """Take note of which episodes ended."""
        if self._state is not None and self._updated is not None:
            is_end, valid = (x.to(self._device) for x in (step.is_terminal | step.is_truncated, step.valid))
            self._state = next_state(self._state, self._updated, is_end, valid)


def _play_rounds(
    environment: Environment, player: Player, rounds: int, max_steps: int, is_stopped: Callable[[], bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Play `rounds` episodes in every environment; give their returns, lengths and cuts, each [rounds, B]."""
    spec = environment.spec
    index = torch.arange(spec.batch_size, device=spec.device)
    finished = torch.zeros_like(index)  # episodes, by environment
    # One row for every round, and one for what is played while others still have to finish.
    returns = torch.zeros(rounds + 1, spec.batch_size, dtype=torch.float64, device=spec.device)
    lengths = torch.zeros(rounds + 1, spec.batch_size, dtype=torch.int64, device=spec.device)
    is_cut = torch.zeros(rounds + 1, spec.batch_size, dtype=torch.bool, device=spec.device)
    age = torch.zeros_like(index)  # of the episode that is being played, in steps in which the policy acted
    observation = environment.reset()
    name_fault(spec, "observation", _is_finite(observation)[None], -1)
    steps_done = 0
    while bool((finished < rounds).any()):
        if is_stopped():
            raise EvaluationStopped
        is_finite = []
        for _ in range(STEPS_BETWEEN_CHECKS):
            step = environment.step(player.act(observation))
            player.see(step)
            observation = step.observation
            row = finished.clamp(max=rounds)
            returns[row, index] += step.raw_reward
            lengths[row, index] += step.valid
            age += step.valid
            is_over = step.is_episode_end | (age >= max_steps)
            is_cut[row, index] |= is_over & ~step.is_episode_end
            finished += is_over
            age *= ~is_over
            is_finite.append(_is_step_finite(step))
        _name_faults(spec, is_finite, steps_done)
        steps_done += STEPS_BETWEEN_CHECKS
    return returns[:rounds], lengths[:rounds], is_cut[:rounds]


def _is_finite(observation: Shaped[Tensor, "B ..."]) -> Bool[Tensor, "B"]:
    if observation.is_floating_point():
        return torch.isfinite(observation).flatten(1).all(-1)
    return torch.ones(observation.shape[0], dtype=torch.bool, device=observation.device)


def _is_step_finite(step: EnvironmentStep) -> tuple[Bool[Tensor, "B"], Bool[Tensor, "B"]]:
    return torch.isfinite(step.raw_reward), _is_finite(step.observation)


def _name_faults(spec: EnvironmentSpec, is_finite: list[tuple[Tensor, Tensor]], steps_before: int) -> None:
    reward, observation = (torch.stack(rows) for rows in zip(*is_finite, strict=True))
    name_fault(spec, "reward", reward, steps_before)
    name_fault(spec, "observation", observation, steps_before)
