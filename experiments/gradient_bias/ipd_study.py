"""Defines study `ipd`: LOLA-DiCE on the iterated prisoner's dilemma, with every place of its gradient exact or sampled.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.2 (figures 2a-d), G.2 (figure 8), Table 3. What
the paper calls the inner loop is the opponent's update: its value ("compositional bias") and derivative ("Hessian").
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.diagnostics import cosine_accuracy, pearson
from metagrad.experiments.gradient_bias.ipd_games import (
    STATES,
    Ring,
    ValueTarget,
    fresh_games,
    other_code,
    rewards,
    value_gradient,
)
from metagrad.experiments.gradient_bias.ipd_report import report
from metagrad.experiments.gradient_bias.lola import (
    BATCH_SIZE,
    RING_SIZE,
    Estimation,
    Learners,
    data_sampler,
    inner_problem,
    outer_loss,
    streams,
)
from metagrad.opponent_shaping import ShapingGradients, shaping_gradients
from metagrad.optimizers import Adam, OptimizerState, constant

UPDATES, QUICK_UPDATES = 500, 100  # Table 3; exact players cooperate after about 60
OUTER_LEARNING_RATE = 0.1  # Table 3
VALUE_LEARNING_RATE = 0.1  # Table 3
CORRELATION_INTERVAL = 5  # updates between comparisons with the exact gradient along a run
PROBE_INTERVAL = 50  # updates between the points of a probe
PROBE_SAMPLES = 8  # gradients of every estimator and learner there
QUICK_SEEDS = 2

ProbeTable = ValueTarget | Literal["none"]

EXACT: dict[str, Any] = {"value": "exact", "outer": "exact"}

ARMS: dict[str, dict[str, Any]] = {
    # Figure 2a: the whole inner loop, and the outer gradient
    "inner128-outer128": {},
    "inner1024-outer128": {"estimation": {"value": 1024}},
    "inner-exact-outer128": {"estimation": {"value": "exact"}},
    "inner1024-outer-exact": {"estimation": {"value": 1024, "outer": "exact"}},
    "inner-exact-outer-exact": {"estimation": EXACT},
    # Figures 2b, 2c: value and derivative of the inner update from data of their own
    "value128-hessian128": {"estimation": {"derivative": 128}},
    "value128-hessian1024": {"estimation": {"derivative": 1024}},
    "value128-hessian-exact": {"estimation": {"derivative": "exact"}},
    "value1024-hessian128": {"estimation": {"value": 1024, "derivative": 128}},
    "value-exact-hessian128": {"estimation": {"value": "exact", "derivative": 128}},
    # Figure 2d: the ring
    "value-off-hessian-off": {"estimation": {"value": "ring"}},
    "value-off-hessian-on": {"estimation": {"value": "ring", "derivative": 128}},
    "value-on-hessian-off": {"estimation": {"derivative": "ring"}},
    "inner128-no-baseline": {"estimation": {"has_inner_baseline": False}},
    # Beyond the paper
    "inner128-return-to-go": {"value_target": "return-to-go"},
    "inner1024-return-to-go": {"estimation": {"value": 1024}, "value_target": "return-to-go"},
    "exact-2-steps": {"estimation": EXACT, "look_ahead": [2, 2]},
    "exact-3-steps": {"estimation": EXACT, "look_ahead": [3, 3]},
    "exact-against-naive": {"estimation": EXACT, "look_ahead": [1, 0]},
    "inner1024-against-naive": {"estimation": {"value": 1024}, "look_ahead": [1, 0]},
    "independent-exact": {"estimation": EXACT, "look_ahead": [0, 0]},
    "independent-outer128": {"look_ahead": [0, 0]},
}
"""What differs from the defaults of `arm_settings`; player 0 is the one that looks ahead where only one does."""

QUICK_ARMS = (
    "inner128-outer128",
    "inner1024-outer128",
    "inner-exact-outer128",
    "inner-exact-outer-exact",
    "value-off-hessian-off",
    "inner128-return-to-go",
    "independent-exact",
)

PROBES: dict[str, tuple[dict[str, Any], ProbeTable]] = {
    "inner128-outer128": ({}, "reward"),
    "inner128-outer128 return-to-go": ({}, "return-to-go"),
    "inner128-outer128 no table": ({}, "none"),
    "inner1024-outer128": ({"value": 1024}, "reward"),
    "inner1024-outer128 return-to-go": ({"value": 1024}, "return-to-go"),
    "inner-exact-outer128": ({"value": "exact"}, "reward"),
    "inner-exact-outer128 return-to-go": ({"value": "exact"}, "return-to-go"),
    "inner128-outer-exact": ({"outer": "exact"}, "reward"),
    "inner1024-outer-exact": ({"value": 1024, "outer": "exact"}, "reward"),
    "value128-hessian128": ({"derivative": 128}, "reward"),
    "value128-hessian1024": ({"derivative": 1024}, "reward"),
    "value128-hessian-exact": ({"derivative": "exact"}, "reward"),
    "value1024-hessian128": ({"value": 1024, "derivative": 128}, "reward"),
    "value-exact-hessian128": ({"value": "exact", "derivative": 128}, "reward"),
}
"""Estimators, and the table of values that they use, compared at the same points of one run."""
PROBED_ARM = "inner1024-outer128"


def arm_settings(name: str, seed: int, updates: int) -> Settings:
    """Return the settings of one run; tables of values regress on the immediate reward, as in the release."""
    defaults = {"estimation": {}, "value_target": "reward", "look_ahead": [1, 1], "probes": []}
    return {"seed": seed, "updates": updates, **defaults, **ARMS[name]}


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    updates = QUICK_UPDATES if is_quick else UPDATES
    arms = QUICK_ARMS if is_quick else tuple(ARMS)
    parts: dict[str, Settings] = {}
    for seed in range(min(seeds, QUICK_SEEDS) if is_quick else seeds):
        parts |= {f"{name}-seed{seed}": {"arm": name} | arm_settings(name, seed, updates) for name in arms}
        probed = arm_settings(PROBED_ARM, seed, updates) | {"probes": list(PROBES)}
        parts[f"probe-seed{seed}"] = {"arm": "probe"} | probed
    return parts


class _Pair(NamedTuple):
    """Holds both players between two updates; a row for each."""

    theta: Tensor  # [2, 5]
    values: dict[ValueTarget, Tensor]  # tables [2, 5], by what they regress on


class _Gradients(NamedTuple):
    """Holds both players' gradients, and the games against looked-ahead opponents from which their tables learn."""

    total: Tensor  # [2, 5]
    code: Tensor | None  # [2, T, B]


def run_part(settings: Settings) -> Result:
    """Run two players who update at the same time, each with a virtual look-ahead at the other or without.

    Returns:
        "reward" [updates]: mean undiscounted reward per step of fresh games of the updated policies, mean of both
        players; "own_reward" [updates, 2]; "cosine" and "pearson": with the exact gradient at the same point, mean of
        both, at "compared" updates; "effective_sample_size" [updates] where there is a ring; "cooperation" [2, 5]: the
        final probabilities by state; "probe": for each estimator its cosines at "probed" updates.
    """
    estimation, generators = Estimation(**settings["estimation"]), streams(settings["seed"])
    probes, target = settings["probes"], settings["value_target"]
    targets: tuple[ValueTarget, ...] = ("reward", "return-to-go") if probes else (target,)
    zero = torch.zeros(2, STATES, dtype=torch.float64)
    pair = _Pair(zero, dict.fromkeys(targets, zero))
    optimizer = Adam(learning_rate=constant(OUTER_LEARNING_RATE))
    value_optimizer = Adam(learning_rate=constant(VALUE_LEARNING_RATE))
    state, value_states = optimizer.init(zero.flatten()), dict.fromkeys(targets, value_optimizer.init(zero.flatten()))
    ring = Ring(RING_SIZE, estimation.steps, generators["ring"]) if estimation.uses_ring else None
    result: Result = {name: [] for name in ("reward", "own_reward", "compared", "cosine", "pearson", "probed")}
    result |= {"effective_sample_size": [], "probe": {name: [] for name in probes}}
    for done in range(settings["updates"]):
        gradients = _gradients(estimation, pair, target, settings["look_ahead"], generators, ring)
        if done % CORRELATION_INTERVAL == 0:
            _compare(result, done, gradients.total, _exact(pair, settings["look_ahead"], generators))
        if probes and done % PROBE_INTERVAL == 0:
            result["probed"].append(done)
            for name in probes:
                result["probe"][name].append(_probe(pair, *PROBES[name], streams(_seed_of(settings, done, name))))
        if ring is not None:
            result["effective_sample_size"].append(round(ring.effective_sample_size(*pair.theta), 2))
        values = dict(pair.values)
        for name in targets:
            if gradients.code is not None:
                slope = value_gradient(values[name], gradients.code, estimation.gamma, name)
                values[name], value_states[name] = _step(value_optimizer, slope, value_states[name], values[name])
        theta, state = _step(optimizer, gradients.total, state, pair.theta)
        pair = _Pair(theta, values)
        own_reward = score(theta, estimation.steps, generators["score"])
        result["own_reward"].append([round(x, 5) for x in own_reward.tolist()])
        result["reward"].append(round(own_reward.mean().item(), 5))
    return result | {"cooperation": torch.sigmoid(-pair.theta).tolist()}


def _step(optimizer: Adam, gradient: Tensor, state: OptimizerState, x: Tensor) -> tuple[Tensor, OptimizerState]:
    """Apply Adam to both players' rows [2, 5]: component by component, so each has an optimizer of its own."""
    flat, state = optimizer.update(gradient.flatten(), state, x.flatten(), x.flatten())
    return flat.view_as(x), state


def score(theta: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Return the mean undiscounted reward per step [2] of a fresh batch of games of two policies [2, 5]."""
    code = fresh_games(theta[:1], theta[1:], steps, BATCH_SIZE, generator)[0]
    return torch.stack([rewards(seen, theta.dtype).mean() for seen in (code, other_code(code))])


def _gradients(
    estimation: Estimation,
    pair: _Pair,
    target: ValueTarget,
    look_aheads: Sequence[int],
    generators: dict[str, torch.Generator],
    ring: Ring | None = None,
) -> _Gradients:
    """Return the gradients of both, in one batch where both look equally far ahead."""
    groups = [[0, 1]] if look_aheads[0] == look_aheads[1] else [[0], [1]]
    values = pair.values[target]
    found, codes = [], []
    for players in groups:
        others, look_ahead = [1 - player for player in players], look_aheads[players[0]]
        learners = Learners(players, pair.theta[players], values[players], values[others])
        gradients, code = lola_gradients(estimation, learners, pair.theta[others], look_ahead, generators, ring)
        found.append(gradients.total)
        codes.append(code)
    return _Gradients(torch.cat(found), None if codes[0] is None else torch.cat(codes))


def lola_gradients(
    estimation: Estimation,
    learners: Learners,
    opponent: Tensor,
    look_ahead: int,
    generators: dict[str, torch.Generator],
    ring: Ring | None = None,
) -> tuple[ShapingGradients, Any]:
    """Return gradients of N learners' losses against opponents [N, 5], and codes [N, T, B] for their tables of values.

    The codes are the outer games; if the outer gradient is exact, games that only the tables see; None if all is exact.
    """
    sampler = data_sampler(estimation, learners, look_ahead, generators, ring)
    gradients = shaping_gradients(
        inner_problem(estimation), outer_loss(estimation), sampler, opponent, learners.own, look_ahead
    )
    if gradients.outer_batch.outer is not None:
        return gradients, gradients.outer_batch.outer.code
    if estimation.is_exact:
        return gradients, None
    code = fresh_games(learners.own, gradients.opponent, estimation.steps, BATCH_SIZE, generators["outer"])
    return gradients, code


def _exact(pair: _Pair, look_aheads: Sequence[int], generators: dict[str, torch.Generator]) -> Tensor:
    exact = _Pair(pair.theta, {"reward": torch.zeros_like(pair.theta)})
    return _gradients(Estimation(**EXACT), exact, "reward", look_aheads, generators).total


def _compare(result: Result, done: int, estimate: Tensor, exact: Tensor) -> None:
    result["compared"].append(done)
    result["cosine"].append(round(cosine_accuracy(estimate, exact).mean().item(), 5))
    result["pearson"].append(round(pearson(estimate, exact).mean().item(), 5))


def _probe(pair: _Pair, options: dict[str, Any], table: ProbeTable, generators: dict[str, torch.Generator]) -> float:
    """Return the mean cosine of `PROBE_SAMPLES` estimates of each player's gradient with the exact one at a point."""
    estimation, exact, opponent = Estimation(**options), _exact(pair, (1, 1), generators), pair.theta.flip(0)
    own_values = None if table == "none" else pair.values[table]
    other_values = None if own_values is None else own_values.flip(0)
    learners = Learners((0, 1), pair.theta, own_values, other_values)
    # One after another: all at once would be a little faster and take a gigabyte.
    cosines = [
        cosine_accuracy(lola_gradients(estimation, learners, opponent, 1, generators)[0].total, exact).mean().item()
        for _ in range(PROBE_SAMPLES)
    ]
    return round(sum(cosines) / PROBE_SAMPLES, 5)


def _seed_of(settings: Settings, done: int, name: str) -> int:
    """Return the generators of a probe's games, which do not disturb the run."""
    return 1_000_000 * (settings["seed"] + 1) + 1_000 * list(PROBES).index(name) + done


ABOUT = "LOLA-DiCE on the prisoner's dilemma: inner, Hessian and outer estimates, off-policy DiCE"
STUDY = Study(name="ipd", description=ABOUT, seeds=10, parts=_parts, run_part=run_part, report=report)
