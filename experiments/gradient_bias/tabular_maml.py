"""Study `tabular-maml`: how well MAML's meta-gradient is estimated, by estimator and by what is exact.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.1 (figures 1a, 1b), G.1.3 (figures 4, 5, 6) and
Table 2. The figures carry no numbers; what the text says of them is what our numbers are held against.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.gradient_bias.tabular_estimators import ESTIMATORS, PERMUTATIONS
from metagrad.experiments.gradient_bias.tabular_sweeps import (
    CAPTION,
    HOW_DECIDED,
    SHOWN,
    TITLES,
    Curves,
    Metric,
    Sweep,
    change,
    compared,
    curves_of,
    panel,
    parts,
    run_part,
    summary_rows,
    write_numbers,
)
from metagrad.experiments.reporting.claims import Claim, Point, differences, row
from metagrad.experiments.reporting.report import Row, line_panels, number, write_report

TRIALS, QUICK_TRIALS = 20, 10  # "same trials", Table 2
MDPS, QUICK_MDPS = 10, 4  # "independent trials", Table 2

SWEEPS = (
    Sweep(
        name="trajectories",
        field="trajectories",
        label="trajectories N",
        symbol="N",
        values=(2, 4, 8, 16, 32, 64, 128, 256),
        quick_values=(2, 8, 32, 128),
        base={"learning_rate": 10.0, "steps": 1},
        estimators=ESTIMATORS,
        permutations=PERMUTATIONS,
        is_log=True,
    ),
    Sweep(
        name="learning-rate",
        field="learning_rate",
        label="inner learning rate α",
        symbol="α",
        values=(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0),
        quick_values=(1.0, 5.0, 9.0, 13.0),
        base={"steps": 5, "trajectories": 32},
        estimators=ESTIMATORS,
        permutations=PERMUTATIONS,
    ),
    Sweep(
        name="steps",
        field="steps",
        label="inner steps K",
        symbol="K",
        values=(1, 2, 3, 4, 5, 6),
        quick_values=(1, 3, 6),
        base={"learning_rate": 10.0, "trajectories": 32},
        estimators=ESTIMATORS,
        permutations=PERMUTATIONS,
    ),
)
FIGURES = {"trajectories": "fig. 4", "learning-rate": "fig. 5", "steps": "fig. 6"}
SMALL_SAMPLES = (2, 4, 8, 16)
"Where the text says low sample size."
LARGE = {"learning-rate": (9.0, 11.0, 13.0), "steps": (4, 5, 6)}
"Where the text says large learning rate, many steps."
NEAR_ONE = 0.95

ACTOR_CRITIC = ("ad", "lvc", "loaded-dice")  # DiCE has neither baseline nor bootstrap


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    if is_quick:
        return parts("maml", SWEEPS, min(seeds, QUICK_MDPS), QUICK_TRIALS, is_quick)
    return parts("maml", SWEEPS, seeds, TRIALS, is_quick)


def sample_size_claims(curves: Curves) -> Iterator[Claim]:
    """What §5.1 says of figures 1a and 1b: one inner step, exact outer gradient."""
    r: Metric = "pearson"
    lvc = {p: ("lvc", p) for p in PERMUTATIONS}
    ad = {p: ("ad", p) for p in PERMUTATIONS}
    few = "SEE ≈ ESE > SSE in low sample size case"
    yield Claim("fig. 1a, LVC: SEE ≈ ESE", few, "similar", compared(curves, r, lvc["SEE"], lvc["ESE"], SMALL_SAMPLES))
    for better in ("SEE", "ESE"):
        points = compared(curves, r, lvc[better], lvc["SSE"], SMALL_SAMPLES)
        yield Claim(f"fig. 1a, LVC: {better} > SSE", few, "above", points)
    for better in ("SEE", "ESE"):
        gaps = curves.of[r][lvc[better]] - curves.of[r][lvc["SSE"]]
        where = f"N = {curves.x[0]:g} less N = {curves.x[-1]:g}"
        shrinks = Point(where, gaps[:, 0] - gaps[:, -1])
        yield Claim(f"fig. 1a, LVC: gap {better} - SSE", "by increasing N the gap is shrinking", "above", [shrinks])
    everywhere = "SEE > ESE in all sample size settings"
    yield Claim("fig. 1b, AD: SEE > ESE", everywhere, "above", compared(curves, r, ad["SEE"], ad["ESE"]))
    only = "only SEE achieves near 1.0 provided sufficient samples"
    where = f"N = {curves.x[-1]:g}"
    at_end = {p: curves.of[r][ad[p]][:, -1] - NEAR_ONE for p in ("SEE", "ESE", "SSE")}
    yield Claim(f"fig. 1b, AD: SEE above {NEAR_ONE}", only, "above", [Point(where, at_end["SEE"])])
    for p in ("ESE", "SSE"):
        yield Claim(f"fig. 1b, AD: {p} below {NEAR_ONE}", only, "above", [Point(where, -at_end[p])])


def outer_claims(curves: Curves) -> Iterator[Claim]:
    """What G.1.3 says of figure 4 on exact and sampled outer gradients."""
    r: Metric = "pearson"
    for estimator in ESTIMATORS:
        name = f"fig. 4, {TITLES[estimator]}"
        for other in ("SES", "ESS"):
            points = compared(curves, r, (estimator, "SSE"), (estimator, other))
            text = "an accurate outer gradient improves more than correcting Hessian or compositional bias"
            yield Claim(f"{name}: SSE > {other}", text, "above", points)
        for above, below in (("EES", "SES"), ("SES", "ESS"), ("ESS", "SSS")):
            points = compared(curves, r, (estimator, above), (estimator, below))
            yield Claim(f"{name}: {above} > {below}", "EES > SES > ESS > SSS", "above", points)


def estimator_claims(curves: Curves) -> Iterator[Claim]:
    """What G.1.3 says of figure 4 on the four estimators."""
    r: Metric = "pearson"
    for permutation in PERMUTATIONS:
        # Where the Hessian is not sampled the other three are one curve.
        for other in ACTOR_CRITIC if permutation[1] == "S" else ACTOR_CRITIC[:1]:
            points = compared(curves, r, (other, permutation), ("dice", permutation))
            name = TITLES[other] if permutation[1] == "S" else "all others"
            text = "DiCE performs the worst in all cases"
            yield Claim(f"fig. 4, {permutation}: {name} > DiCE", text, "above", points)
    for permutation in ("SSS", "ESS"):
        pair = (("loaded-dice", permutation), ("lvc", permutation))
        text = "with a sampled outer gradient comparable correlation, LVC's variance smaller than Loaded-DiCE's"
        name = f"fig. 4, {permutation}: LVC, Loaded-DiCE"
        yield Claim(f"{name}, correlation", text, "similar", compared(curves, r, *pair[::-1]))
        yield Claim(f"{name}, log ratio of summed std", text, "above", compared(curves, "deviation", *pair))
    for permutation in ("SSE", "ESE", "SSS", "ESS"):
        for other in ("lvc", "loaded-dice"):
            points = compared(curves, r, (other, permutation), ("ad", permutation))
            text = "AD performs worse than LVC and Loaded-DiCE when the Hessian is estimated"
            yield Claim(f"fig. 4, {permutation}: {TITLES[other]} > AD", text, "above", points)
    text = "exact outer gradient, LVC: ESE = SEE > SSE"
    yield Claim("fig. 4, LVC: SEE ≈ ESE", text, "similar", compared(curves, r, ("lvc", "SEE"), ("lvc", "ESE")))
    for better in ("SEE", "ESE"):
        yield Claim(f"fig. 4, LVC: {better} > SSE", text, "above", compared(curves, r, ("lvc", better), ("lvc", "SSE")))
    text = "exact outer gradient, Loaded-DiCE: SEE > ESE > SSE"
    for above, below in (("SEE", "ESE"), ("ESE", "SSE")):
        points = compared(curves, r, ("loaded-dice", above), ("loaded-dice", below))
        yield Claim(f"fig. 4, Loaded-DiCE: {above} > {below}", text, "above", points)


def large_update_claims(curves: Curves) -> Iterator[Claim]:
    """What G.1.3 says of figures 5 and 6: large learning rates, many steps."""
    r: Metric = "pearson"
    figure, large = FIGURES[curves.sweep.name], LARGE[curves.sweep.name]
    for estimator in ESTIMATORS:
        name = f"{figure}, {TITLES[estimator]}"
        fall = change(curves, r, (estimator, "SSE"))
        text = "the correlation decreases a lot in SSE in all estimators"
        yield Claim(f"{name}: SSE falls", text, "above", [fall._replace(difference=-fall.difference)])
        text = "the inner-loop estimation can become more important than the outer-loop policy gradient"
        points = compared(curves, r, (estimator, "EES"), (estimator, "SSE"), large)
        yield Claim(f"{name}: EES > SSE", text, "above", points, is_somewhere=True)
    for estimator in ("lvc", "loaded-dice"):
        for first, second in (("SEE", "ESE"), ("SES", "ESS")):
            points = compared(curves, r, (estimator, first), (estimator, second), large)
            text = "large learning rate, many steps: SEE ≈ ESE, SES ≈ ESS in LVC and Loaded-DiCE"
            yield Claim(f"{figure}, {TITLES[estimator]}: {first} ≈ {second}", text, "similar", points)
    fall = change(curves, r, ("ad", "ESE"))
    text = "with larger learning rate, the Hessian estimation problem in AD largely decreases the correlation"
    yield Claim(f"{figure}, AD: ESE falls", text, "above", [fall._replace(difference=-fall.difference)])


def variance_claims(curves: Curves) -> Iterator[Claim]:
    """What G.1.3 says of the variance in all three figures: what an exact inner value does to it."""
    name, metric = FIGURES[curves.sweep.name], "log ratio of summed std"
    spread: Metric = "deviation"
    more = "correcting compositional bias increases the variance, especially with a sampled outer gradient"
    for estimator in ESTIMATORS:
        for exact, sampled in (("ESS", "SSS"), ("EES", "SES")):
            points = compared(curves, spread, (estimator, exact), (estimator, sampled))
            yield Claim(f"{name}, {TITLES[estimator]}: {exact} / {sampled}, {metric}", more, "above", points)
    for estimator in ("dice", "loaded-dice"):
        text = "correcting compositional bias increases the variance, especially when that of the Hessian is large"
        points = compared(curves, spread, (estimator, "ESE"), (estimator, "SSE"))
        yield Claim(f"{name}, {TITLES[estimator]}: ESE / SSE, {metric}", text, "above", points)
    for estimator in ("lvc", "ad"):
        text = "only with LVC or AD and an exact outer gradient it can decrease the variance"
        points = compared(curves, spread, (estimator, "SSE"), (estimator, "ESE"))
        yield Claim(f"{name}, {TITLES[estimator]}: SSE / ESE, {metric}", text, "above", points, is_somewhere=True)


def claims(found: dict[str, Curves]) -> list[Claim]:
    """All that the text says of figures 1a, 1b, 4, 5 and 6."""
    sizes = found["trajectories"]
    made = [*sample_size_claims(sizes), *outer_claims(sizes), *estimator_claims(sizes)]
    for name in LARGE:
        made += large_update_claims(found[name])
    for curves in found.values():
        made += variance_claims(curves)
    return [claim for claim in made if claim.points]


def _first_order_row(found: dict[str, Curves]) -> Row:
    """SEE, EES and SES see first-order gradients only, which AD, LVC and Loaded-DiCE share sample by sample."""
    worst = max(
        float(np.abs(curves.of["pearson"][other, p] - curves.of["pearson"]["ad", p]).max())
        for curves in found.values()
        for other in ("lvc", "loaded-dice")
        for p in ("SEE", "EES", "SES")
    )
    count = len(found["trajectories"].of["pearson"]["ad", "SEE"])
    ours = f"largest difference of a correlation {number(worst, 2)}"
    name = "figs. 4-6: SEE, EES, SES of AD, LVC, Loaded-DiCE on the same samples"
    return Row(name, "not in the paper (identical by definition)", ours, f"{count} MDPs", "over all points and MDPs")


def _draw(folder: Path, found: dict[str, Curves]) -> list[tuple[str, str]]:
    sizes, few = found["trajectories"], ("SEE", "ESE", "SSE")
    panels = [panel(sizes, metric, e, few, is_median) for metric, is_median in SHOWN[:2] for e in ("lvc", "ad")]
    line_panels(folder / "figure-1ab.png", panels, columns=2)
    text = "Figures 1a and 1b: one inner step, learning rate 10. Mean ± standard error and median over MDPs."
    figures = [("figure-1ab.png", text)]
    for name, curves in found.items():
        path = f"{FIGURES[name].replace('fig. ', 'figure-')}.png"
        panels = [panel(curves, metric, e, PERMUTATIONS, is_median) for metric, is_median in SHOWN for e in ESTIMATORS]
        line_panels(folder / path, panels, columns=len(ESTIMATORS))
        fixed = ", ".join(f"{field.replace('_', ' ')} {number(value)}" for field, value in curves.sweep.base.items())
        figures.append((path, f"{FIGURES[name].replace('fig.', 'Figure')} ({fixed}). {CAPTION}"))
    return figures


INTRODUCTION = """
MAML's meta-gradient ∂J(θ_K)/∂θ₀ in random tabular MDPs (20 states, 5 actions, Dirichlet 0.001, discount 0.8, uniform
θ₀), estimated from N trajectories of 20 steps and held against the exact one. The three letters say what is sampled (S)
and what exact (E): the value of the inner update, its derivative (Hessian), the outer gradient. Sampled values carry
noise of coefficient 1 that the trajectories of one estimate share. A correlation is that of one estimate, averaged over
{trials} trials, one value per MDP.

{how}
"""


def _report(folder: Path, done: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    found = curves_of(SWEEPS, done)
    write_numbers(folder / "numbers.csv", found)
    made = claims(found)
    shown = [("lvc", p) for p in ("SEE", "ESE", "SSE")] + [("ad", p) for p in ("SEE", "ESE", "SSE")]
    rows = summary_rows(found["trajectories"], "fig. 1", shown, (2, 32, 256, 128))
    rows += [_first_order_row(found), *(row(claim) for claim in made)]
    title = f"Tabular MAML: bias and variance of meta-gradient estimators{' (quick version)' if is_quick else ''}"
    trials = next(iter(done.values()))[0]["trials"]
    introduction = INTRODUCTION.format(trials=trials, how=HOW_DECIDED)
    write_report(folder, title, introduction, rows, _draw(folder, found), differences(made))


STUDY = Study(
    name="tabular-maml",
    description="MAML in random tabular MDPs: AD, LVC, DiCE, Loaded-DiCE against exact answers (figs 1ab, 4-6)",
    seeds=MDPS,
    parts=_parts,
    run_part=run_part,
    report=_report,
)
