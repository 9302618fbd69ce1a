"""Makes tables and figures of the study `atari`: raw scores by game, human-normalised ones over games, meta-parameters.

Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", Figures 3, 9 and 10, which show
curves and no numbers; aggregates of Agarwal et al. (2021).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from metagrad.experiments.gradient_bias import atari_scores
from metagrad.experiments.gradient_bias.atari_scores import Interval, human_normalised, stratified_bootstrap
from metagrad.experiments.reporting.claims import paired
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Curves, Parts, curves_of, first_settings, results_of
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_of, number, std_of

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


def games_of(parts: Parts) -> list[str]:
    """Return the games in the order of the parts."""
    return list(dict.fromkeys(settings["game"] for settings, _ in parts.values()))


def scores_of(parts: Parts, arm: str) -> Array:
    """Return mean raw returns of the games played after training, [seeds, games]."""
    games = [results_of(parts, arm=arm, game=game) for game in games_of(parts)]
    return np.array([[np.mean(result["returns"]) for result in results] for results in games], dtype=np.float64).T


def normalised_of(parts: Parts, arm: str) -> Array:
    """Return the same scores, human-normalised."""
    columns = zip(games_of(parts), scores_of(parts, arm).T, strict=True)
    return np.array([[human_normalised(game, x) for x in column] for game, column in columns], dtype=np.float64).T


def curve_of(parts: Parts, arm: str, game: str, name: str) -> Curves | None:
    """Return a scalar along training at the updates that all seeds logged; None where one logged nothing."""
    own = results_of(parts, arm=arm, game=game)
    return curves_of(own, name) if all(name in result for result in own) else None


def _game_rows(parts: Parts) -> Iterator[Row]:
    """Compare LVC with plain differentiation, game by game; seeds share nothing but their number."""
    scores = {arm: scores_of(parts, arm) for arm in TITLES}
    for column, game in enumerate(games_of(parts)):
        own = {arm: scores[arm][:, column] for arm in TITLES}
        ours = ", ".join(f"{TITLES[arm]} {mean_of(values, 4)}" for arm, values in own.items())
        difference = paired(own["mgrl"], own["mgrl-lvc"])
        lower = f"{game}: with LVC lower by {number(-difference.difference)}, beyond its 95 % interval."
        sentences = [lower] if difference.verdict("below") == "holds" else []
        spread = f"std {', '.join(std_of(values, 3) for values in own.values())}; LVC - AD {difference}"
        claim = "with LVC comparable or better"
        yield Row(f"{game}, raw return", claim, ours, len(own["a2c"]), spread, sentences)


def _aggregate_rows(parts: Parts) -> Iterator[Row]:
    """Yield aggregates over games, with intervals over seeds."""
    for arm, title in TITLES.items():
        scores = normalised_of(parts, arm)
        seeds = f"{scores.shape[0]} on {scores.shape[1]} games"
        for name, aggregate in AGGREGATES.items():
            interval = stratified_bootstrap(scores, aggregate, BOOTSTRAPS, np.random.default_rng(0))
            quantity = f"{title}: human-normalised {name}"
            yield Row(quantity, "not in the paper", f"{interval.point:.4f}", seeds, _shown(interval))


def _shown(interval: Interval) -> str:
    if np.isnan(interval.low):
        return "one seed: no interval"
    return f"95 % interval {interval.low:.4f} to {interval.high:.4f}"


def _panel(parts: Parts, game: str, name: str, title: str, arms: tuple[str, ...]) -> Panel:
    found = {arm: curve_of(parts, arm, game, name) for arm in arms}
    lines = [mean_curve(TITLES[arm], *curve) for arm, curve in found.items() if curve is not None]
    return Panel(title, "updates", name.partition("/")[2], lines)


def _figures(parts: Parts) -> list[Figure]:
    games = games_of(parts)
    returns = [_panel(parts, game, RETURN, game, tuple(TITLES)) for game in games]
    caption = "As the paper's Figures 3 and 9: mean raw return of the last 512 games. Mean ± standard deviation."
    learning = tuple(arm for arm in TITLES if arm != "a2c")
    learnt = [_panel(parts, game, name, f"{game}: {name[4:]}", learning) for game in games for name in ETA]
    figures = [Figure("figure_9.png", caption, returns, columns=4)] if any(panel.curves for panel in returns) else []
    text = "As the paper's Figure 10: the four meta-parameters."
    return [*figures, Figure("figure_10.png", text, learnt, columns=4)]


INTRODUCTION = """\
{quick}A2C with the hyper-parameters of Table 4, and the same agent while it learns γ, λ, the value and the entropy
coefficient by meta-gradients that look 3 updates ahead (discard), with plain differentiation or with the low-variance
curvature. {environments} environments × 5 steps, {updates:,} of the paper's 125,000 updates. Backend {backend}. After
training {episodes} full games are played with the last parameters, raw scores, sampled actions, all lives. Aggregates
over games are of human-normalised scores; intervals are stratified bootstraps over seeds.

Frames are agent steps (4 screens each). Look-ahead frames are counted apart: MGRL steps four times as many as A2C."""
QUICK = "**Quick: two games, a few updates; nothing here is a result.** "


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page of `atari`; there is no verdict on a run that stops long before the paper's end."""
    settings = first_settings(parts)
    short = f"{settings['updates']:,} of 125,000 updates were made: nothing is said of the paper's scores."
    write_report(
        folder,
        "Atari: three-step meta-gradients",
        INTRODUCTION.format(quick=QUICK if is_quick else "", **settings),
        [*_game_rows(parts), *_aggregate_rows(parts)],
        _figures(parts),
        None if settings["updates"] >= WHOLE_UPDATES else [short],
    )
