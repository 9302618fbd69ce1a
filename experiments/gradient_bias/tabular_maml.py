"""Defines study `tabular-maml`: how well MAML's meta-gradient is estimated, by estimator and by what is exact.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.1 (figures 1a, 1b), G.1.3 (figures 4, 5, 6) and
Table 2. The figures carry no numbers; what the text says of them is what our numbers are held against.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from metagrad.cluster.studies.study import Study
from metagrad.experiments.gradient_bias import tabular_sweeps as ts
from metagrad.experiments.gradient_bias.tabular_estimators import ESTIMATORS, PERMUTATIONS
from metagrad.experiments.gradient_bias.tabular_sweeps import Sweep, SweepCurves, ordering
from metagrad.experiments.reporting.claims import Claim, Point
from metagrad.experiments.reporting.figures import Figure
from metagrad.experiments.reporting.parts import Parts, first_settings
from metagrad.experiments.reporting.report import Row
from metagrad.experiments.reporting.statistics import number

SWEEPS = (
    Sweep(
        name="trajectories",
        field="trajectories",
        label="trajectories N",
        values=(2, 4, 8, 16, 32, 64, 128, 256),
        quick_values=(2, 8, 32, 128),
        base={"learning_rate": 10.0, "steps": 1},
        is_log=True,
    ),
    Sweep(
        name="learning-rate",
        field="learning_rate",
        label="inner learning rate α",
        values=(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0),
        quick_values=(1.0, 5.0, 9.0, 13.0),
        base={"steps": 5, "trajectories": 32},
    ),
    Sweep(
        name="steps",
        field="steps",
        label="inner steps K",
        values=(1, 2, 3, 4, 5, 6),
        quick_values=(1, 3, 6),
        base={"learning_rate": 10.0, "trajectories": 32},
    ),
)
FIGURES = {"trajectories": "fig. 4", "learning-rate": "fig. 5", "steps": "fig. 6"}
SMALL_SAMPLES = (2, 4, 8, 16)
"""The text calls these sample sizes low."""
LARGE = {"learning-rate": (9.0, 11.0, 13.0), "steps": (4, 5, 6)}
"""The text calls these learning rates large and these steps many."""
NEAR_ONE = 0.95

ACTOR_CRITIC = ("ad", "lvc", "loaded-dice")  # DiCE has neither baseline nor bootstrap


def sample_size_claims(curves: SweepCurves) -> Iterator[Claim]:
    """Yield what §5.1 says of figures 1a and 1b: one inner step, exact outer gradient."""
    claim, x, of = partial(ordering, curves), curves.x, curves.of["pearson"]
    few = "SEE ≈ ESE > SSE in low sample size case"
    yield claim("fig. 1a, LVC: SEE ≈ ESE", few, (("lvc", "SEE"), ("lvc", "ESE")), SMALL_SAMPLES, relation="similar")
    for better in ("SEE", "ESE"):
        yield claim(f"fig. 1a, LVC: {better} > SSE", few, (("lvc", better), ("lvc", "SSE")), SMALL_SAMPLES)
    for better in ("SEE", "ESE"):
        gaps = of["lvc", better] - of["lvc", "SSE"]
        shrinks = Point(f"N = {x[0]:g} less N = {x[-1]:g}", gaps[:, 0] - gaps[:, -1])
        yield Claim(f"fig. 1a, LVC: gap {better} - SSE", "by increasing N the gap is shrinking", "above", [shrinks])
    everywhere = "SEE > ESE in all sample size settings"
    yield claim("fig. 1b, AD: SEE > ESE", everywhere, (("ad", "SEE"), ("ad", "ESE")))
    only = "only SEE achieves near 1.0 provided sufficient samples"
    for p, sign, side in (("SEE", 1, "above"), ("ESE", -1, "below"), ("SSE", -1, "below")):
        at_end = Point(f"N = {x[-1]:g}", sign * (of["ad", p][:, -1] - NEAR_ONE))
        yield Claim(f"fig. 1b, AD: {p} {side} {NEAR_ONE}", only, "above", [at_end])


def outer_claims(curves: SweepCurves) -> Iterator[Claim]:
    """Yield what G.1.3 says of figure 4 on exact and sampled outer gradients."""
    outer = "an accurate outer gradient improves more than correcting Hessian or compositional bias"
    order = "EES > SES > ESS > SSS"
    for e in ESTIMATORS:
        for paper, above, below in (
            (outer, "SSE", "SES"),
            (outer, "SSE", "ESS"),
            (order, "EES", "SES"),
            (order, "SES", "ESS"),
            (order, "ESS", "SSS"),
        ):
            yield ordering(curves, f"fig. 4, {ts.TITLES[e]}: {above} > {below}", paper, ((e, above), (e, below)))


def estimator_claims(curves: SweepCurves) -> Iterator[Claim]:
    """Yield what G.1.3 says of figure 4 on the four estimators."""
    claim = partial(ordering, curves)
    for p in PERMUTATIONS:
        # Where the Hessian is not sampled the other three are one curve.
        for other in ACTOR_CRITIC if p[1] == "S" else ACTOR_CRITIC[:1]:
            name = ts.TITLES[other] if p[1] == "S" else "all others"
            text = "DiCE performs the worst in all cases"
            yield claim(f"fig. 4, {p}: {name} > DiCE", text, ((other, p), ("dice", p)))
    for p in ("SSS", "ESS"):
        lvc, loaded = ("lvc", p), ("loaded-dice", p)
        text = "with a sampled outer gradient comparable correlation, LVC's variance smaller than Loaded-DiCE's"
        name = f"fig. 4, {p}: LVC, Loaded-DiCE"
        yield claim(f"{name}, correlation", text, (lvc, loaded), relation="similar")
        yield claim(f"{name}, log ratio of summed std", text, (loaded, lvc), metric="deviation")
    for p in ("SSE", "ESE", "SSS", "ESS"):
        for other in ("lvc", "loaded-dice"):
            text = "AD performs worse than LVC and Loaded-DiCE when the Hessian is estimated"
            yield claim(f"fig. 4, {p}: {ts.TITLES[other]} > AD", text, ((other, p), ("ad", p)))
    text = "exact outer gradient, LVC: ESE = SEE > SSE"
    yield claim("fig. 4, LVC: SEE ≈ ESE", text, (("lvc", "SEE"), ("lvc", "ESE")), relation="similar")
    for better in ("SEE", "ESE"):
        yield claim(f"fig. 4, LVC: {better} > SSE", text, (("lvc", better), ("lvc", "SSE")))
    text = "exact outer gradient, Loaded-DiCE: SEE > ESE > SSE"
    for above, below in (("SEE", "ESE"), ("ESE", "SSE")):
        name = f"fig. 4, Loaded-DiCE: {above} > {below}"
        yield claim(name, text, (("loaded-dice", above), ("loaded-dice", below)))


def large_update_claims(curves: SweepCurves) -> Iterator[Claim]:
    """Yield what G.1.3 says of figures 5 and 6: large learning rates, many steps."""
    figure, large = FIGURES[curves.sweep.name], LARGE[curves.sweep.name]

    def falls(estimator: str, permutation: str, paper: str) -> Claim:
        rise = ts.change(curves, "pearson", (estimator, permutation))
        name = f"{figure}, {ts.TITLES[estimator]}: {permutation} falls"
        return Claim(name, paper, "above", [rise._replace(difference=-rise.difference)])

    for e in ESTIMATORS:
        yield falls(e, "SSE", "the correlation decreases a lot in SSE in all estimators")
        text = "the inner-loop estimation can become more important than the outer-loop policy gradient"
        name = f"{figure}, {ts.TITLES[e]}: EES > SSE"
        yield ordering(curves, name, text, ((e, "EES"), (e, "SSE")), large)._replace(is_somewhere=True)
    for e in ("lvc", "loaded-dice"):
        for first, second in (("SEE", "ESE"), ("SES", "ESS")):
            text = "large learning rate, many steps: SEE ≈ ESE, SES ≈ ESS in LVC and Loaded-DiCE"
            name = f"{figure}, {ts.TITLES[e]}: {first} ≈ {second}"
            yield ordering(curves, name, text, ((e, first), (e, second)), large, relation="similar")
    text = "with larger learning rate, the Hessian estimation problem in AD largely decreases the correlation"
    yield falls("ad", "ESE", text)


def variance_claims(curves: SweepCurves) -> Iterator[Claim]:
    """Yield what G.1.3 says of the variance in all three figures: what an exact inner value does to it."""
    more = "correcting compositional bias increases the variance, especially with a sampled outer gradient"
    large = "correcting compositional bias increases the variance, especially when that of the Hessian is large"
    less = "only with LVC or AD and an exact outer gradient it can decrease the variance"
    for estimators, paper, above, below, is_somewhere in (
        (ESTIMATORS, more, ("ESS", "EES"), ("SSS", "SES"), False),
        (("dice", "loaded-dice"), large, ("ESE",), ("SSE",), False),
        (("lvc", "ad"), less, ("SSE",), ("ESE",), True),
    ):
        for e, (first, second) in product(estimators, list(zip(above, below, strict=True))):
            name = f"{FIGURES[curves.sweep.name]}, {ts.TITLES[e]}: {first} / {second}, log ratio of summed std"
            claim = ordering(curves, name, paper, ((e, first), (e, second)), metric="deviation")
            yield claim._replace(is_somewhere=is_somewhere)


def claims(found: dict[str, SweepCurves]) -> list[Claim]:
    """Return all that the text says of figures 1a, 1b, 4, 5 and 6."""
    sizes = found["trajectories"]
    made = [*sample_size_claims(sizes), *outer_claims(sizes), *estimator_claims(sizes)]
    for name in LARGE:
        made += large_update_claims(found[name])
    for curves in found.values():
        made += variance_claims(curves)
    return [claim for claim in made if claim.points]


def _figures(found: dict[str, SweepCurves]) -> Iterator[Figure]:
    sizes, few = found["trajectories"], ("SEE", "ESE", "SSE")
    panels = [ts.panel(sizes, metric, e, few, is_median) for metric, is_median in ts.SHOWN[:2] for e in ("lvc", "ad")]
    text = "Figures 1a and 1b: one inner step, learning rate 10. Mean ± standard error and median over MDPs."
    yield Figure("figure-1ab.png", text, panels, columns=2)
    for name, curves in found.items():
        panels = [
            ts.panel(curves, metric, e, PERMUTATIONS, is_median) for metric, is_median in ts.SHOWN for e in ESTIMATORS
        ]
        fixed = ", ".join(f"{field.replace('_', ' ')} {number(value)}" for field, value in curves.sweep.base.items())
        caption = f"{FIGURES[name].replace('fig.', 'Figure')} ({fixed}). {ts.CAPTION}"
        yield Figure(f"{FIGURES[name].replace('fig. ', 'figure-')}.png", caption, panels, len(ESTIMATORS))


INTRODUCTION = """
MAML's meta-gradient ∂J(θ_K)/∂θ₀ in random tabular MDPs (20 states, 5 actions, Dirichlet 0.001, discount 0.8, uniform
θ₀), estimated from N trajectories of 20 steps and held against the exact one. The three letters say what is sampled (S)
and what exact (E): the value of the inner update, its derivative (Hessian), the outer gradient. Sampled values carry
noise of coefficient 1 that the trajectories of one estimate share. A correlation is that of one estimate, averaged over
{trials} trials, one value per MDP.
"""


def _report(folder: Path, done: Parts, is_quick: bool) -> None:
    found = ts.curves_of(SWEEPS, done)
    shown = [(e, p) for e in ("lvc", "ad") for p in ("SEE", "ESE", "SSE")]
    # SEE, EES and SES see first-order gradients only, which AD, LVC and Loaded-DiCE share sample by sample.
    same = "figs. 4-6: SEE, EES, SES of AD, LVC, Loaded-DiCE on the same samples"
    table: list[Row | Claim] = [
        *ts.summary_rows(found["trajectories"], "fig. 1", shown, (2, 32, 256, 128)),
        ts.identity_row(list(found.values()), ("SEE", "EES", "SES"), same),
        *claims(found),
    ]
    title = "Tabular MAML: bias and variance of meta-gradient estimators"
    introduction = INTRODUCTION.format(trials=first_settings(done)["trials"])
    ts.write_tabular_report(folder, title, introduction, found, table, list(_figures(found)), is_quick)


ABOUT = "MAML in random tabular MDPs: AD, LVC, DiCE, Loaded-DiCE against exact answers (figs 1ab, 4-6)"
_parts = partial(ts.parts, "maml", SWEEPS)
STUDY = Study(name="tabular-maml", description=ABOUT, seeds=ts.MDPS, parts=_parts, run_part=ts.run_part, report=_report)
