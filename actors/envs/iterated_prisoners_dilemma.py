"""Plays the iterated prisoner's dilemma: two players, two actions; the state is what both did last.

Shapes: B games stepped together, an asterisk for any number of leading dimensions. A player sees its own last action
first, so the same table serves both players: the game is symmetric, and each player calls the other one "other".
Nothing is random in the game.

The game has two players, and an `Environment` takes one action and returns one reward: to actors it is one environment
whose actions are those of both players together (`JointIteratedPrisonersDilemma`). Studies step the players apart
(`IteratedPrisonersDilemma`).

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.2.1 and Table 3. Deviation from its text: with the
payoffs of G.2.1 action 0 is to defect and 1 to cooperate; the sentence below them says the opposite, the released code
does what the payoffs say.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS, DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep

DEFECT, COOPERATE = 0, 1
ACTION_NAMES = ("defect", "cooperate")
JOINT_ACTION_NAMES = tuple(f"{own}, {other}" for own in ACTION_NAMES for other in ACTION_NAMES)  # 2 a + a' of player 0
STATE_NAMES = ("start", "DD", "DC", "CD", "CC")  # own last action first
OTHER_STATE = (0, 1, 3, 2, 4)  # what the other player sees in each state
PAYOFF = ((-2.0, 0.0), (-3.0, -1.0))  # [own action][other's action]; G.2.1, R^1, and R^2 is its transpose
START = 0
STEPS = 100  # Table 3


@dataclass(frozen=True, kw_only=True, slots=True)
class IteratedPrisonersDilemmaConfig(DeviceEnvironmentConfig):
    """Gives the length of a game; the default is the paper's (Table 3)."""

    steps: int = STEPS
    """Rounds of a game; its end is a true termination."""

    def __post_init__(self) -> None:
        self.require_whole("steps", 1, MAX_STEPS, "the paper uses 100")

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "JointIteratedPrisonersDilemma":
        """Make B games on `device`; nothing is random in them, and neither threads nor training matter."""
        del seed, threads, is_training
        return JointIteratedPrisonersDilemma(self, batch_size, device)


def state_after(own: Int[Tensor, "*batch"], other: Int[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """Return the state of the player who did `own`: 1 + 2 a + a', whatever the state was.

    >>> state_after(torch.tensor([DEFECT, COOPERATE]), torch.tensor([COOPERATE, COOPERATE])).tolist()
    [2, 4]
    """
    return 1 + 2 * own.to(torch.int64) + other.to(torch.int64)


def payoff(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 2"]:
    """Return the rewards by own and other action, on a device whose queue is not waited for."""
    return torch.tensor(PAYOFF, dtype=dtype).to(device, non_blocking=True)


def reward_of(
    own: Int[Tensor, "*batch"], other: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float64
) -> Float[Tensor, "*batch"]:
    """Return the reward of the player who did `own`; an action that is not 0 or 1 is an IndexError on the CPU.

    >>> reward_of(torch.tensor([DEFECT, COOPERATE]), torch.tensor([COOPERATE, DEFECT])).tolist()
    [0.0, -3.0]
    """
    return payoff(dtype, own.device)[own.to(torch.int64), other.to(torch.int64)]


def other_state(state: Int64[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """Return the same situations as the other player sees them.

    >>> other_state(torch.tensor([0, 1, 2, 3, 4])).tolist()
    [0, 1, 3, 2, 4]
    """
    return torch.tensor(OTHER_STATE).to(state.device, non_blocking=True)[state]


class TwoPlayerStep(NamedTuple):
    """Holds what one step of B games returns, with a row for each player."""

    observation: Int64[Tensor, "2 B"]  # at a game's end that of the next one
    reward: Float[Tensor, "2 B"]
    is_terminal: Bool[Tensor, "B"]


class IteratedPrisonersDilemmaState(NamedTuple):
    """Holds B games in the eyes of player 0."""

    state: Int64[Tensor, "B"]
    step_count: Int32[Tensor, "B"]  # rounds of the game so far


class _Games(DeviceEnvironment[IteratedPrisonersDilemmaState]):
    """Plays B games with SAME_STEP autoreset; nothing is random, so no generator is kept."""

    _length: int

    def _play(self, action: Int[Tensor, "2 B"]) -> tuple[Float[Tensor, "2 B"], Bool[Tensor, "B"]]:
        """Play one round of all B games; return both players' rewards, and which games ended."""
        step_count = self._running().step_count + 1
        first, second = action
        reward = torch.stack([reward_of(first, second, torch.float32), reward_of(second, first, torch.float32)])
        is_terminal = step_count >= self._length
        self._state = IteratedPrisonersDilemmaState(
            state=state_after(first, second).masked_fill(is_terminal, START),
            step_count=step_count.masked_fill(is_terminal, 0),
        )
        return reward, is_terminal

    def _start(self) -> IteratedPrisonersDilemmaState:
        state = torch.full((self.spec.batch_size,), START, dtype=torch.int64, device=self.spec.device)
        return IteratedPrisonersDilemmaState(state=state, step_count=torch.zeros_like(state, dtype=torch.int32))


class IteratedPrisonersDilemma(_Games):
    """Steps the players apart: observations are numbers of states, int64 [2, B], one row for each player.

    The specification describes what one player sees and does.
    """

    def __init__(
        self, config: IteratedPrisonersDilemmaConfig, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(
            name="IteratedPrisonersDilemma",
            batch_size=batch_size,
            observation_shape=(),
            observation_dtype=torch.int64,
            action_names=ACTION_NAMES,
            device=device,
            seed=None,
        )
        self._length = config.steps

    def step(self, action: Int[Tensor, "2 B"]) -> TwoPlayerStep:
        """Play one round of all B games, with a row of actions for each player."""
        reward, is_terminal = self._play(action)
        return TwoPlayerStep(self.observe(), reward, is_terminal)

    def observe(self) -> Int64[Tensor, "2 B"]:
        """Return what both players see now, without stepping."""
        state = self._running().state
        return torch.stack([state, other_state(state)])


class JointIteratedPrisonersDilemma(_Games):
    """Lets one policy move both players, as an `Environment`.

    Action 2 a + a' is a of player 0 and a' of player 1, as in `JOINT_ACTION_NAMES`. Observations are the state as
    player 0 sees it, one-hot, float32 [B, 5]. The reward is the mean of both players', which are functions of the
    action (`reward_of`).
    """

    def __init__(
        self, config: IteratedPrisonersDilemmaConfig, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(
            name=f"IteratedPrisonersDilemma-{config.steps}",
            batch_size=batch_size,
            observation_shape=(len(STATE_NAMES),),
            action_names=JOINT_ACTION_NAMES,
            device=device,
            seed=None,
        )
        self._length = config.steps

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Play one round of all B games; an action beyond the four is an IndexError on the CPU."""
        reward, is_terminal = self._play(torch.stack([action // 2, action % 2]))
        return EnvironmentStep.same_step(self.observe(), reward.mean(0), is_terminal)

    def observe(self) -> Float[Tensor, "B 5"]:
        """Return what player 0 sees now, without stepping."""
        return torch.nn.functional.one_hot(self._running().state, len(STATE_NAMES)).to(torch.float32)
