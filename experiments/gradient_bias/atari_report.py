"""Tables and figures of the study `atari`: raw scores by game, human-normalised ones over games, meta-parameters.

Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", Figures 3, 9 and 10, which show
curves and no numbers; aggregates of Agarwal et al. (2021).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.gradient_bias import atari_scores
from metagrad.experiments.gradient_bias.atari_scores import Interval, human_normalised, stratified_bootstrap
from metagrad.experiments.reporting.paired import paired
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report

RETURN = "episode/return_mean"
ETA = ("eta/gamma", "eta/lambda", "eta/value_coefficient", "eta/entropy_coefficient")
TITLES = {"a2c": "A2C", "mgrl": "3-step MGRL", "mgrl-lvc": "3-step MGRL + LVC"}
WHOLE_UPDATES = 125_000
BOOTSTRAPS = 20_000
AGGREGATES: dict[str, Callable[[Array], ArrayLike]] = {
    "IQM": atari_scores.iqm,
    "median": atari_scores.median,
    "mean": atari_scores.mean,
    "optimality gap": atari_scores.optimality_gap,
}

Parts = Mapping[str, tuple[Settings, Result]]


class Curve(NamedTuple):
    """One scalar of one agent on one game: updates [K], values [seeds, K]."""

    updates: Array
    values: Array


def games_of(parts: Parts) -> list[str]:
    """Games in the order of the parts."""
    return list(dict.fromkeys(settings["game"] for settings, _ in parts.values()))


def _own(parts: Parts, arm: str, game: str) -> list[Result]:
    own = [part for part in parts.values() if (part[0]["arm"], part[0]["game"]) == (arm, game)]
    return [result for _, result in sorted(own, key=lambda part: part[0]["seed"])]


def scores_of(parts: Parts, arm: str) -> Array:
    """Mean raw returns of the games played after training, [seeds, games]."""
    by_game = [[float(np.mean(result["returns"])) for result in _own(parts, arm, game)] for game in games_of(parts)]
    return np.array(by_game, dtype=np.float64).T


def normalised_of(parts: Parts, arm: str) -> Array:
    """The same, human-normalised."""
    scores, games = scores_of(parts, arm), games_of(parts)
    columns = [[human_normalised(game, x) for x in column] for game, column in zip(games, scores.T, strict=True)]
    return np.array(columns, dtype=np.float64).T


def curve_of(parts: Parts, arm: str, game: str, name: str) -> Curve | None:
    """A scalar along training at the updates that all seeds logged; None where one logged nothing."""
    own = [result.get(name) for result in _own(parts, arm, game)]
    if not own or any(curve is None for curve in own):
        return None
    held = [dict(zip(curve["updates"], curve["values"], strict=True)) for curve in own]  # type: ignore[index]
    updates = sorted(set.intersection(*map(set, held)))
    if not updates:
        return None
    return Curve(np.array(updates, dtype=np.float64), np.array([[each[u] for u in updates] for each in held]))


def _game_rows(parts: Parts) -> Iterator[tuple[Row, str | None]]:
    """LVC against plain differentiation, game by game; seeds share nothing but their number."""
    claim = "with LVC comparable or better"
    scores = {arm: scores_of(parts, arm) for arm in TITLES}
    for column, game in enumerate(games_of(parts)):
        own = {arm: scores[arm][:, column] for arm in TITLES}
        ours = ", ".join(f"{TITLES[arm]} {number(float(values.mean()), 4)}" for arm, values in own.items())
        difference = paired(own["mgrl"], own["mgrl-lvc"])
        spread = ", ".join(number(float(mean_and_std(values)[1]), 3) for values in own.values())
        worse = difference.difference < 0 and difference.verdict(True) == "the opposite"
        sentence = (
            f"{game}: with LVC lower by {number(-difference.difference)}, beyond its 95 % interval." if worse else None
        )
        row = Row(f"{game}, raw return", claim, ours, str(len(own["a2c"])), f"std {spread}; LVC - AD {difference}")
        yield row, sentence


def _aggregate_rows(parts: Parts) -> Iterator[Row]:
    """Over games, with intervals over seeds."""
    for arm, title in TITLES.items():
        scores = normalised_of(parts, arm)
        for name, aggregate in AGGREGATES.items():
            interval = stratified_bootstrap(scores, aggregate, BOOTSTRAPS, np.random.default_rng(0))
            seeds = f"{scores.shape[0]} on {scores.shape[1]} games"
            yield Row(
                f"{title}: human-normalised {name}",
                "not in the paper",
                f"{interval.point:.4f}",
                seeds,
                _shown(interval),
            )


def _shown(interval: Interval) -> str:
    if np.isnan(interval.low):
        return "one seed: no interval"
    return f"95 % interval {interval.low:.4f} to {interval.high:.4f}"


def _panel(parts: Parts, game: str, name: str, title: str, arms: tuple[str, ...]) -> Panel:
    lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
    for arm in arms:
        curve = curve_of(parts, arm, game, name)
        if curve is not None:
            mean, std = mean_and_std(curve.values)
            lines.append((TITLES[arm], curve.updates, mean, std))
    return Panel(title, "updates", name.partition("/")[2], lines)


def _draw(folder: Path, parts: Parts) -> list[tuple[str, str]]:
    games, figures = games_of(parts), []
    panels = [_panel(parts, game, RETURN, game, tuple(TITLES)) for game in games]
    if any(panel.curves for panel in panels):
        line_panels(folder / "figure_9.png", panels, columns=4)
        caption = "As the paper's Figures 3 and 9: mean raw return of the last 512 games. Mean ± standard deviation."
        figures.append(("figure_9.png", caption))
    learning = tuple(arm for arm in TITLES if arm != "a2c")
    panels = [_panel(parts, game, name, f"{game}: {name[4:]}", learning) for game in games for name in ETA]
    line_panels(folder / "figure_10.png", panels, columns=4)
    figures.append(("figure_10.png", "As the paper's Figure 10: the four meta-parameters."))
    return figures


INTRODUCTION = """\
{quick}A2C with the hyper-parameters of Table 4, and the same agent while it learns γ, λ, the value and the entropy
coefficient by meta-gradients that look 3 updates ahead (discard), with plain differentiation or with the low-variance
curvature. {environments} environments × 5 steps, {updates:,} of the paper's 125,000 updates. Backend {backend}. After
training {episodes} full games are played with the last parameters, raw scores, sampled actions, all lives. Aggregates
over games are of human-normalised scores; intervals are stratified bootstraps over seeds.

Frames are agent steps (4 screens each). Look-ahead frames are counted apart: MGRL steps four times as many as A2C."""
QUICK = "**Quick: two games, a few updates; nothing here is a result.** "


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md; no verdict on a run that stops long before the paper's end."""
    settings = next(iter(parts.values()))[0]
    found = list(_game_rows(parts))
    is_whole = settings["updates"] >= WHOLE_UPDATES
    short = f"{settings['updates']:,} of 125,000 updates were made: nothing is said of the paper's scores."
    sentences = [sentence for _, sentence in found if sentence is not None] if is_whole else [short]
    write_report(
        folder,
        "Atari: three-step meta-gradients",
        INTRODUCTION.format(quick=QUICK if is_quick else "", **settings),
        [*(row for row, _ in found), *_aggregate_rows(parts)],
        _draw(folder, parts),
        sentences,
    )
