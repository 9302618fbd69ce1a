"""Plays games of two players with a parameter for each state: exact values, sampling, a buffer of older games.

They play the iterated prisoner's dilemma; a policy has five parameters, sigmoid(θ_s) = P(defect | s). The game is
symmetric: everything is seen by one of them ("own"), and the other one sees `other_code` of it.

Shapes: N pairs of players, B games, T steps, C games of a ring. A game is a column of codes 4 s + 2 a + a' in [0, 20):
own state, own action, other's action.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.2, and its released code.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad import network_modules
from metagrad.actors.envs.iterated_prisoners_dilemma import OTHER_STATE, START, STATE_NAMES, other_state, payoff
from metagrad.diagnostics import effective_sample_size

STATES, JOINT = len(STATE_NAMES), 4

ValueTarget = Literal["reward", "return-to-go"]


class Games(NamedTuple):
    """Holds B games as one player sees them."""

    code: Int64[Tensor, "*N T B"]
    behaviour_log_prob: Float[Tensor, "*N T B"] | None = None  # of both actions, when they were drawn; None: on-policy


def joint_log_prob(own: Float[Tensor, "*N 5"], other: Float[Tensor, "*N 5"]) -> Float[Tensor, "*N 20"]:
    """Return the log probability of both actions in each own state, in nats, by code."""
    return network_modules.joint_log_prob(own, other, OTHER_STATE).flatten(-2)


def exact_value(own: Float[Tensor, "5"], other: Float[Tensor, "5"], gamma: float) -> Float[Tensor, ""]:
    """Return the expected discounted return of the player with parameters `own`, over rounds without end.

    Equation: P₀ (I - γ P)⁻¹ R, P over the four pairs of actions, P₀ that of the first round.
    """
    both = joint_log_prob(own, other).exp().view(STATES, JOINT)
    first, transition = both[START], both[START + 1 :]
    identity = torch.eye(JOINT, dtype=both.dtype, device=both.device)
    reward = payoff(both.dtype, both.device).flatten()
    # Not torch.linalg.solve: torch 2.13 gives wrong numbers for its forward-mode derivative under vmap, silently.
    return first @ torch.linalg.inv(identity - gamma * transition) @ reward


def play(
    own: Float[Tensor, "N 5"], other: Float[Tensor, "N 5"], uniform: Float[Tensor, "T N B"]
) -> Int64[Tensor, "N T B"]:
    """Sample codes of B games of each pair, by inverse CDF of one number in [0, 1) for both actions of a round.

    The next state is computed for every state a game could be in, all steps at once; the loop only follows.
    """
    mine, others = torch.sigmoid(own), torch.sigmoid(other)[:, list(OTHER_STATE)]
    bounds = torch.stack([mine * others, mine, mine + (1.0 - mine) * others])  # P(DD), P(DD, DC), P(DD, DC, CD)
    drawn = uniform.unsqueeze(-1)
    passed = [(drawn >= bound[:, None]).view(torch.uint8) for bound in bounds]  # bytes: an eighth of what indices take
    successor = (passed[0] + passed[1] + passed[2] + 1).to(torch.int64)
    states = [torch.full_like(uniform[0], START, dtype=torch.int64)]
    for row in successor:
        states.append(row.gather(-1, states[-1].unsqueeze(-1)).squeeze(-1))
    return (JOINT * torch.stack(states[:-1], 1)) + (torch.stack(states[1:], 1) - 1)


def other_code(code: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Return the same rounds as the other player sees them."""
    state, mine, others = code // 4, code // 2 % 2, code % 2
    return JOINT * other_state(state) + 2 * others + mine


def rewards(code: Int64[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Return the rewards of the player who sees these codes."""
    return payoff(dtype, code.device).flatten()[code % JOINT]


def fresh_games(
    own: Float[Tensor, "N 5"], other: Float[Tensor, "N 5"], steps: int, count: int, generator: torch.Generator
) -> Int64[Tensor, "N T B"]:
    """Sample codes of new games of each pair."""
    return play(own, other, torch.rand((steps, len(own), count), generator=generator, dtype=torch.float64))


class Ring:
    """Holds the newest C games that look-aheads played, shared by both learners, as player 0 sees them.

    Prefilled with games of two uniform players, θ = 0.
    """

    def __init__(self, size: int, steps: int, generator: torch.Generator) -> None:
        zero = torch.zeros(1, STATES, dtype=torch.float64)
        self.code = fresh_games(zero, zero, steps, size, generator)[0]  # [T, C]
        self.log_prob = joint_log_prob(zero, zero)[0][self.code]
        self._position = 0  # of the oldest game

    def push(self, code: Int64[Tensor, "T B"], log_prob: Float[Tensor, "T B"]) -> None:
        """Put games in the place of the oldest ones; of more than C the last C stay."""
        size, count = self.code.shape[-1], code.shape[-1]
        where = (self._position + torch.arange(count))[-size:] % size
        self.code, self.log_prob = self.code.clone(), self.log_prob.clone()  # a tape may hold what was there
        self.code[:, where], self.log_prob[:, where] = code[:, -size:], log_prob[:, -size:]
        self._position = (self._position + count) % size

    def look_ahead(self, player: int, code: Int64[Tensor, "T B"], log_prob: Float[Tensor, "T B"]) -> Games:
        """Push what a player's look-ahead saw, and see all games as that player does."""
        self.push(other_code(code) if player else code, log_prob)
        return Games(other_code(self.code) if player else self.code, self.log_prob)

    def effective_sample_size(self, first: Float[Tensor, "5"], second: Float[Tensor, "5"]) -> float:
        """Return what whole games are worth to players 0 and 1 with these parameters, from 1 to C."""
        return float(effective_sample_size((joint_log_prob(first, second)[self.code] - self.log_prob).sum(0)))


def value_gradient(
    values: Float[Tensor, "N 5"], code: Int64[Tensor, "N T B"], gamma: float, target: ValueTarget
) -> Float[Tensor, "N 5"]:
    """Return the gradient of the mean squared error of a table of values.

    Targets: the return from a step to the end of its game, or as in the release the immediate reward.
    """
    state, wanted = (code // JOINT).flatten(1), rewards(code, values.dtype)
    if target == "return-to-go":
        discount = (gamma ** torch.arange(code.shape[1], dtype=values.dtype, device=values.device)).unsqueeze(-1)
        wanted = (discount * wanted).flip(1).cumsum(1).flip(1) / discount
    visits = torch.zeros_like(values).scatter_add(1, state, torch.ones_like(wanted).flatten(1))
    sums = torch.zeros_like(values).scatter_add(1, state, wanted.flatten(1))
    return -2.0 * (sums - visits * values) / state.shape[1]
