"""Study `mrp`: learnt discounts of the Markov reward process under expected n-step meta-gradients.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 3.3 and Figure 4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from metagrad.actors.envs.markov_reward_process import sample_rewards
from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.one_step_at_a_time.mrp_problem import (
    BATCH_SIZE,
    START_DISCOUNT,
    MrpBatch,
    batch_sampler,
    discounts,
    init_eta,
    init_theta,
    inner_problem,
    meta_optimizer,
    outer_loss,
    state_values,
    true_values,
)
from metagrad.experiments.reporting.paired import AGREES, Change, claim_row, neighbours
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report
from metagrad.meta_gradient import outer_weights
from metagrad.monte_carlo import LookAhead, unroll_gradients
from metagrad.unroll import inner_update

STEPS = (1, 5, 10)  # Figure 4
COPIES = 256  # Figure 4: Monte-Carlo samples of each meta-update
UPDATES = 6_000  # not in the paper: see _INTRODUCTION
RECORD_EVERY = 60


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    return {
        f"n{n}-seed{seed}": {
            "n": n,
            "seed": seed,
            "updates": 200 if is_quick else UPDATES,
            "copies": 32 if is_quick else COPIES,
            "record_every": 20 if is_quick else RECORD_EVERY,
            "is_outer_fresh": True,
        }
        for seed in range(seeds)
        for n in STEPS
    }


def run_part(settings: Settings) -> Result:
    """One run: θ by one ordinary update at a time, η by the mean of many n-step meta-gradients.

    θ starts alike and trains on the same episodes for every n; the look-ahead's episodes are others (eq. 8 and 9).

    Returns:
        Lists over windows of `record_every` updates: "updates" (done at the window's end), "training_loss" (the inner
        loss of the batches trained on) and "value_error" (mean squared distance to the true values), means over the
        window, and "discounts" [S] at its end.
    """
    training = torch.Generator().manual_seed(2 * settings["seed"])
    looking_ahead = torch.Generator().manual_seed(2 * settings["seed"] + 1)
    problem, meta = inner_problem(), meta_optimizer()
    theta, eta = init_theta(training), init_eta()
    state, meta_state = problem.optimizer.init(theta), meta.init(eta)
    look_ahead = LookAhead(outer_weights("n-step", settings["n"]))
    truth, every = true_values(), settings["record_every"]
    result: Result = {"updates": [], "training_loss": [], "value_error": [], "discounts": []}
    loss_sum = error_sum = 0.0
    for done in range(1, settings["updates"] + 1):
        sampler = batch_sampler(looking_ahead, settings["is_outer_fresh"], is_averaged=True)
        start = (theta, state, eta)
        gradients = unroll_gradients(problem, outer_loss, sampler, start, look_ahead, settings["copies"]).eta
        rewards = sample_rewards((BATCH_SIZE,), training, theta.dtype)
        update = inner_update(problem, theta, state, eta, MrpBatch(rewards, rewards), keep_graph=False)
        theta, state = update.theta, update.state
        with torch.no_grad():
            eta, meta_state = meta.update(gradients.mean(0), meta_state, eta, eta)
            loss_sum += float(update.loss)
            error_sum += float((state_values(theta) - truth).square().mean())
        if done % every == 0:
            result["updates"].append(done)
            result["training_loss"].append(loss_sum / every)
            result["value_error"].append(error_sum / every)
            result["discounts"].append(discounts(eta).tolist())
            loss_sum = error_sum = 0.0
    return result


class _Curves(NamedTuple):
    """What the runs with one n recorded, seeds first."""

    updates: Array  # [K]
    training_loss: Array  # [seeds, K]
    value_error: Array  # [seeds, K]
    even: Array  # [seeds, K], mean over the even states' discounts
    odd: Array  # [seeds, K]


def _curves(parts: Mapping[str, tuple[Settings, Result]]) -> dict[int, _Curves]:
    """By n; every n has the same seeds in the same order."""
    curves = {}
    for n in sorted({settings["n"] for settings, _ in parts.values()}):
        runs = sorted((s["seed"], name) for name, (s, _) in parts.items() if s["n"] == n)
        results = [parts[name][1] for _, name in runs]
        gamma = np.array([result["discounts"] for result in results])
        curves[n] = _Curves(
            np.array(results[0]["updates"], dtype=np.float64),
            np.array([result["training_loss"] for result in results]),
            np.array([result["value_error"] for result in results]),
            gamma[..., ::2].mean(-1),
            gamma[..., 1::2].mean(-1),
        )
    return curves


def _over_all(values: Array) -> Array:
    """Mean over training, per seed."""
    return np.asarray(values.mean(1))


def _at_end(values: Array) -> Array:
    """Mean over the last tenth of training, per seed."""
    return np.asarray(values[:, -max(1, values.shape[1] // 10) :].mean(1))


def _draw(folder: Path, curves: Mapping[int, _Curves]) -> None:
    def all_n(field: str, start: float | None = None) -> list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]]:
        lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
        for n, curve in curves.items():
            x, (mean, std) = curve.updates, mean_and_std(getattr(curve, field))
            if start is not None:
                x, mean, std = (np.concatenate([[first], rest]) for first, rest in ((0, x), (start, mean), (0, std)))
            lines.append((f"{n}-step", x, mean, std))
        return lines

    panels = [
        Panel("(a) training loss", "updates", "inner loss", all_n("training_loss"), is_log_y=True),
        Panel("(b) even states", "updates", "discount", all_n("even", START_DISCOUNT)),
        Panel("(c) odd states", "updates", "discount", all_n("odd", START_DISCOUNT)),
    ]
    line_panels(folder / "figure_4.png", panels)
    error = Panel("distance to the true values", "updates", "mean squared error", all_n("value_error"), is_log_y=True)
    line_panels(folder / "value_error.png", [error])


def _claims(curves: Mapping[int, _Curves]) -> list[tuple[Row, list[str]]]:
    """What the paper says of Figure 4, each with the sentences for where ours differs."""
    labels = [f"{n}-step" for n in curves]
    claims = []
    for kind, goal in (("odd", 0), ("even", 1)):
        moves = []
        for label, curve in zip(labels, curves.values(), strict=True):
            end = getattr(curve, kind)[:, -1]
            moves.append(Change("start", np.full_like(end, START_DISCOUNT), f"end, {label}", end))
        text = "decrease towards 0" if goal == 0 else "rise towards 1"
        claims.append(claim_row(f"discounts of {kind} states", text, goal == 1, moves))
    measures = (
        ("discounts of even states, mean over training", "even", "larger n converges faster: higher", True, _over_all),
        ("discounts of odd states, mean over training", "odd", "larger n converges faster: lower", False, _over_all),
        ("training loss, last tenth", "training_loss", "larger n performs better: lower", False, _at_end),
        ("error of the values, mean over training", "value_error", "larger n performs better: lower", False, _over_all),
        ("error of the values, last tenth", "value_error", "larger n performs better: lower", False, _at_end),
    )
    for quantity, field, text, is_larger, summary in measures:
        values = [summary(getattr(curve, field)) for curve in curves.values()]
        changes = neighbours(labels, values)
        if field == "even":  # where the paper's lines of larger n are one: each against the smallest n
            changes = [Change(labels[0], values[0], *more) for more in list(zip(labels, values, strict=True))[1:]]
        claims.append(claim_row(quantity, text, is_larger, changes))
    return [*claims, _overlap(curves)]


def _overlap(curves: Mapping[int, _Curves]) -> tuple[Row, list[str]]:
    """Do the curves of the two largest n coincide on even states?"""
    least, *_, second, most = curves
    means = {n: np.asarray(curve.even.mean(0)) for n, curve in curves.items()}
    apart, others = (float(abs(means[n] - means[second]).max()) for n in (most, least))
    is_one_line = apart <= 0.01  # a hundredth of the axis, the width of a line
    is_any_apart = max(apart, others) > 0.01
    verdict = (AGREES if is_one_line else "distinct lines") if is_any_apart else "no line apart from another yet"
    quantity = f"discounts of even states, {second}- and {most}-step lines"
    ours = f"at most {number(apart, 2)} apart: {verdict}"
    spread = f"{least}-step from {second}-step: at most {number(others, 2)}"
    row = Row(quantity, "overlap, as they are identical", ours, str(len(curves[most].even)), spread)
    if not is_any_apart:
        return row, [f"{quantity} overlap, but so do all: nothing can be told apart yet."]
    return row, [] if is_one_line else [f"{quantity} do not coincide: they are up to {number(apart, 2)} apart."]


def _unfinished(curves: Mapping[int, _Curves]) -> list[str]:
    """A sentence for every n whose discounts are on their way but more than 0.1 from where they should end."""
    sentences = []
    for n, curve in curves.items():
        for kind, goal in (("odd", 0), ("even", 1)):
            mean = float(getattr(curve, kind)[:, -1].mean())
            if abs(mean - goal) > 0.1:
                where = f"With {n}-step meta-gradients the discounts of {kind} states are at {number(mean)} on average"
                sentences.append(f"{where} after {curve.updates[-1]:,.0f} updates, not yet within 0.1 of {goal}.")
    return sentences


_INTRODUCTION = """\
Discounts of a Markov reward process, one for each of its 10 states, learnt by the mean of {copies} n-step
meta-gradients at every update, n in {steps}. The value network makes one ordinary update each time, on the same
episodes whatever n is. Lines are means over seeds, bands standard deviations; discounts are averaged over the even
and over the odd states.

The paper does not say how many updates it makes. Meta-Adam moves a logit by at most about its step size, 0.002, at
each update, so an even discount needs some 1,500 updates from 0.5 to 0.95 at full speed: lines that coincide for two
n are lines at that speed. What drives the odd discounts, we expect, is the noise that they let into the targets, a far
weaker signal. {updates} updates were made here, {until}.

Choices where the paper is silent: state s enters the network as s / 10; ReLU; Haiku's default initialisation; losses
are means over states and episodes, with the factor 1/2; float32. The outer loss sees fresh episodes. The training
loss is the inner loss of the batches trained on, the error of the values their mean squared distance to the true ones
(which the noise of the rewards does not enter), both averaged over windows of {every} updates. The verdicts in the
table go by the 95 % interval (Student's t) of the differences paired over seeds.
"""


def _report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    curves = _curves(parts)
    settings = next(iter(parts.values()))[0]
    introduction = _INTRODUCTION.format(
        copies=settings["copies"],
        steps=", ".join(map(str, curves)),
        updates=f"{settings['updates']:,}",
        until="the quick version" if is_quick else "chosen beforehand; what is not there yet is listed below",
        every=settings["record_every"],
    )
    _draw(folder, curves)
    claims = _claims(curves)
    write_report(
        folder,
        "Markov reward process: expected n-step meta-gradients",
        introduction,
        [row for row, _ in claims],
        [
            ("figure_4.png", "As the paper's Figure 4: training loss, discounts of even and of odd states."),
            ("value_error.png", "Beyond the paper: mean squared distance of the values to the true ones."),
        ],
        [sentence for _, sentences in claims for sentence in sentences] + _unfinished(curves),
    )


STUDY = Study(
    name="mrp",
    description="Markov rewards: discounts by expected n-step meta-gradients (One Step at a Time, Fig. 4)",
    seeds=5,  # Figure 4
    parts=_parts,
    run_part=run_part,
    report=_report,
)
