"""Defines study `mrp`: learnt discounts of the Markov reward process under expected n-step meta-gradients.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 3.3 and Figure 4.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from metagrad.actors.envs.markov_reward_process import sample_rewards
from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.one_step_at_a_time import mrp_problem as problem
from metagrad.experiments.one_step_at_a_time.mrp_problem import START_DISCOUNT, MrpBatch
from metagrad.experiments.reporting.claims import AGREES, Change, change_row, neighbours
from metagrad.experiments.reporting.figures import Curve, Figure, Panel
from metagrad.experiments.reporting.parts import Parts, first_settings, results_of, sizes
from metagrad.experiments.reporting.report import Row, differences_of, write_report
from metagrad.experiments.reporting.statistics import Array, mean_and_std, number
from metagrad.meta_gradient import outer_weights
from metagrad.monte_carlo import LookAhead, unroll_gradients
from metagrad.unroll import inner_update

STEPS = (1, 5, 10)  # Figure 4
COPIES = 256  # Figure 4: Monte-Carlo samples of each meta-update
UPDATES = 6_000  # not in the paper: see _INTRODUCTION
RECORD_EVERY = 60


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    length = sizes(is_quick, updates=(UPDATES, 200), copies=(COPIES, 32), record_every=(RECORD_EVERY, 20))
    return {
        f"n{n}-seed{seed}": {"n": n, "seed": seed, **length, "is_outer_fresh": True}
        for seed in range(seeds)
        for n in STEPS
    }


def run_part(settings: Settings) -> Result:
    """Run once: θ by one ordinary update at a time, η by the mean of many n-step meta-gradients.

    θ starts alike and trains on the same episodes for every n; the look-ahead's episodes are others (eq. 8 and 9).

    Returns:
        Lists over windows of `record_every` updates: "updates" (done at the window's end), "training_loss" (the inner
        loss of the batches trained on) and "value_error" (mean squared distance to the true values), means over the
        window, and "discounts" [S] at its end.
    """
    training = torch.Generator().manual_seed(2 * settings["seed"])
    looking_ahead = torch.Generator().manual_seed(2 * settings["seed"] + 1)
    inner, meta = problem.inner_problem(), problem.meta_optimizer()
    theta, eta = problem.init_theta(training), problem.init_eta()
    state, meta_state = inner.optimizer.init(theta), meta.init(eta)
    look_ahead = LookAhead(outer_weights("n-step", settings["n"]))
    truth, every = problem.true_values(), settings["record_every"]
    result: Result = {"updates": [], "training_loss": [], "value_error": [], "discounts": []}
    loss_sum = error_sum = 0.0
    for done in range(1, settings["updates"] + 1):
        sampler = problem.batch_sampler(looking_ahead, settings["is_outer_fresh"], is_averaged=True)
        start = (theta, state, eta)
        gradients = unroll_gradients(inner, problem.outer_loss, sampler, start, look_ahead, settings["copies"]).eta
        rewards = sample_rewards((problem.BATCH_SIZE,), training, theta.dtype)
        update = inner_update(inner, theta, state, eta, MrpBatch(rewards, rewards), keep_graph=False)
        theta, state = update.theta, update.state
        with torch.no_grad():
            eta, meta_state = meta.update(gradients.mean(0), meta_state, eta, eta)
            loss_sum += float(update.loss)
            error_sum += float((problem.state_values(theta) - truth).square().mean())
        if done % every == 0:
            result["updates"].append(done)
            result["training_loss"].append(loss_sum / every)
            result["value_error"].append(error_sum / every)
            result["discounts"].append(problem.discounts(eta).tolist())
            loss_sum = error_sum = 0.0
    return result


class _Curves(NamedTuple):
    """Holds what the runs with one n recorded, seeds first."""

    updates: Array  # [K]
    training_loss: Array  # [seeds, K]
    value_error: Array  # [seeds, K]
    even: Array  # [seeds, K], mean over the even states' discounts
    odd: Array  # [seeds, K]


def _curves(parts: Parts) -> dict[int, _Curves]:
    """Return what was recorded by n; every n has the same seeds in the same order."""
    curves = {}
    for n in sorted({settings["n"] for settings, _ in parts.values()}):
        results = results_of(parts, n=n)
        loss, error, gamma = (np.array([r[x] for r in results]) for x in ("training_loss", "value_error", "discounts"))
        updates = np.array(results[0]["updates"], dtype=np.float64)
        curves[n] = _Curves(updates, loss, error, gamma[..., ::2].mean(-1), gamma[..., 1::2].mean(-1))
    return curves


ByN = Mapping[int, _Curves]


def _over_all(values: Array) -> Array:
    """Return the mean over training, per seed."""
    return np.asarray(values.mean(1))


def _at_end(values: Array) -> Array:
    """Return the mean over the last tenth of training, per seed."""
    return np.asarray(values[:, -max(1, values.shape[1] // 10) :].mean(1))


def _figures(curves: ByN) -> list[Figure]:
    def all_n(field: str, start: float | None = None) -> list[Curve]:
        lines: list[Curve] = []
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
    error = Panel("distance to the true values", "updates", "mean squared error", all_n("value_error"), is_log_y=True)
    beyond = "Beyond the paper: mean squared distance of the values to the true ones."
    return [
        Figure("figure_4.png", "As the paper's Figure 4: training loss, discounts of even and of odd states.", panels),
        Figure("value_error.png", beyond, [error]),
    ]


def _claims(curves: ByN) -> Iterator[Row]:
    """Hold what the paper says of Figure 4 against our runs."""
    labels = [f"{n}-step" for n in curves]
    for kind, goal in (("odd", 0), ("even", 1)):
        ends = [getattr(curve, kind)[:, -1] for curve in curves.values()]
        starts = np.full_like(ends[0], START_DISCOUNT)
        moves = [Change("start", starts, f"end, {label}", end) for label, end in zip(labels, ends, strict=True)]
        text, is_larger = ("rise towards 1", True) if goal else ("decrease towards 0", False)
        yield change_row(f"discounts of {kind} states", text, is_larger, moves)
    faster, better = "larger n converges faster: ", "larger n performs better: lower"
    for quantity, field, text, is_larger, summary in (
        ("discounts of even states, mean over training", "even", f"{faster}higher", True, _over_all),
        ("discounts of odd states, mean over training", "odd", f"{faster}lower", False, _over_all),
        ("training loss, last tenth", "training_loss", better, False, _at_end),
        ("error of the values, mean over training", "value_error", better, False, _over_all),
        ("error of the values, last tenth", "value_error", better, False, _at_end),
    ):
        values = [summary(getattr(curve, field)) for curve in curves.values()]
        changes = neighbours(labels, values)
        if field == "even":  # where the paper's lines of larger n are one: each against the smallest n
            changes = [Change(labels[0], values[0], *more) for more in list(zip(labels, values, strict=True))[1:]]
        yield change_row(quantity, text, is_larger, changes)
    yield _overlap(curves)


def _overlap(curves: ByN) -> Row:
    """Compare the curves of the two largest n on even states, which the paper has coincide."""
    least, *_, second, most = curves
    means = {n: np.asarray(curve.even.mean(0)) for n, curve in curves.items()}
    apart, others = (float(abs(means[n] - means[second]).max()) for n in (most, least))
    is_one_line = apart <= 0.01  # a hundredth of the axis, the width of a line
    is_any_apart = max(apart, others) > 0.01
    verdict = (AGREES if is_one_line else "distinct lines") if is_any_apart else "no line apart from another yet"
    quantity = f"discounts of even states, {second}- and {most}-step lines"
    ours = f"at most {number(apart, 2)} apart: {verdict}"
    spread = f"{least}-step from {second}-step: at most {number(others, 2)}"
    sentences = []
    if not is_any_apart:
        sentences.append(f"{quantity} overlap, but so do all: nothing can be told apart yet.")
    elif not is_one_line:
        sentences.append(f"{quantity} do not coincide: they are up to {number(apart, 2)} apart.")
    return Row(quantity, "overlap, as they are identical", ours, len(curves[most].even), spread, sentences)


def _unfinished(curves: ByN) -> Iterator[str]:
    """Yield a sentence for every n whose discounts are on their way but more than 0.1 from where they should end."""
    for n, curve in curves.items():
        for kind, goal in (("odd", 0), ("even", 1)):
            mean = float(getattr(curve, kind)[:, -1].mean())
            if abs(mean - goal) > 0.1:
                where = f"With {n}-step meta-gradients the discounts of {kind} states are at {number(mean)} on average"
                yield f"{where} after {curve.updates[-1]:,.0f} updates, not yet within 0.1 of {goal}."


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


def _report(folder: Path, parts: Parts, is_quick: bool) -> None:
    curves, settings = _curves(parts), first_settings(parts)
    introduction = _INTRODUCTION.format(
        copies=settings["copies"],
        steps=", ".join(map(str, curves)),
        updates=f"{settings['updates']:,}",
        until="the quick version" if is_quick else "chosen beforehand; what is not there yet is listed below",
        every=settings["record_every"],
    )
    rows = list(_claims(curves))
    title = "Markov reward process: expected n-step meta-gradients"
    differences = [*differences_of(rows), *_unfinished(curves)]
    write_report(folder, title, introduction, rows, _figures(curves), differences)


ABOUT = "Markov rewards: discounts by expected n-step meta-gradients (One Step at a Time, Fig. 4)"
STUDY = Study(name="mrp", description=ABOUT, seeds=5, parts=_parts, run_part=run_part, report=_report)
