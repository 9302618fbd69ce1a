"""Estimates the meta-gradient of a learnt intrinsic reward φ by estimator, inner steps and samples (`tabular-lirpg`).

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.1 (figures 1c, 1d) and G.1.4 (figure 7): AD and
LVC, permutation ESE. Beyond the paper: DiCE and Loaded-DiCE there, and all permutations at one sample size.

The study `tabular-lirpg-released` is the same with one quantity constant that the release detaches and the paper does
not speak of: the scale ‖V_π‖₂ of the noise in the values, through which φ acts as well.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from metagrad.cluster.studies.study import Settings, Study
from metagrad.experiments.gradient_bias import tabular_sweeps as ts
from metagrad.experiments.gradient_bias.tabular_estimators import ESTIMATORS, PERMUTATIONS
from metagrad.experiments.gradient_bias.tabular_sweeps import Sweep, SweepCurves, ordering
from metagrad.experiments.reporting.claims import Claim, Point
from metagrad.experiments.reporting.figures import Figure, Panel
from metagrad.experiments.reporting.parts import Parts, first_settings
from metagrad.experiments.reporting.report import Row

SAMPLE_SIZES = (16, 32, 64, 128, 256)
BASE = {"learning_rate": 10.0, "inner_lambda": 0.9}  # Table 2; generalised advantages as released
STEPS, QUICK_STEPS = (1, 2, 3, 4, 5), (1, 3, 5)
PERMUTATIONS_AT = 64  # trajectories


def _sweep(name: str, trajectories: int, permutations: tuple[str, ...]) -> Sweep:
    return Sweep(
        name=name,
        field="steps",
        label="inner steps K",
        values=STEPS,
        quick_values=QUICK_STEPS,
        base=BASE | {"trajectories": trajectories},
        permutations=permutations,
    )


BY_SIZE = {f"trajectories{n}": _sweep(f"trajectories{n}", n, ("ESE",)) for n in SAMPLE_SIZES}
SWEEPS = (*BY_SIZE.values(), _sweep("permutations", PERMUTATIONS_AT, PERMUTATIONS))


def _released_parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    return {
        name: settings | {"base": settings["base"] | {"is_noise_scale_constant": True}}
        for name, settings in ts.parts("lirpg", SWEEPS, seeds, is_quick).items()
    }


def claims(found: dict[str, SweepCurves]) -> list[Claim]:
    """Return all that the text says of figures 1c, 1d and 7."""
    by_size = {n: found[f"trajectories{n}"] for n in SAMPLE_SIZES}
    return [*_growth_claims(by_size), *_estimator_claims(by_size)]


def _growth_claims(by_size: dict[int, SweepCurves]) -> Iterator[Claim]:
    few, many = by_size[SAMPLE_SIZES[0]], by_size[SAMPLE_SIZES[-1]]
    text = "with more sample size and less steps the correlation increases for both estimators"
    for name, figure in (("lvc", "fig. 1c/d, LVC"), ("ad", "fig. 1c/d, AD")):
        low, high = (curves.of["pearson"][name, "ESE"] for curves in (few, many))
        more = [Point(f"K = {x:g}", high[:, i] - low[:, i]) for i, x in enumerate(few.x)]
        yield Claim(f"{figure}: N = {SAMPLE_SIZES[-1]} > N = {SAMPLE_SIZES[0]}", text, "above", more)
        rises = [(n, ts.change(curves, "pearson", (name, "ESE"))) for n, curves in by_size.items()]
        falls = [Point(f"N = {n}", -rise.difference) for n, rise in rises]
        yield Claim(f"{figure}: K = {few.x[0]:g} > K = {few.x[-1]:g}", text, "above", falls)


def _estimator_claims(by_size: dict[int, SweepCurves]) -> Iterator[Claim]:
    lvc, ad = ("lvc", "ESE"), ("ad", "ESE")
    same: list[Point] = []
    for n, curves in by_size.items():
        same += [p._replace(where=f"N = {n}") for p in ts.compared(curves, "pearson", lvc, ad, (1,))]
    text = "with 1 inner step both estimators perform similarly"
    yield Claim("fig. 1c/d, K = 1: LVC ≈ AD", text, "similar", same)
    text = "with several steps LVC still reaches a relatively high correlation, AD directly reaches a low one"
    for n, curves in by_size.items():
        yield ordering(curves, f"fig. 1c/d, N = {n}: LVC > AD", text, (lvc, ad), STEPS[1:])
    points = [
        Point(f"N = {n}", ts.change(curves, "pearson", lvc).difference - ts.change(curves, "pearson", ad).difference)
        for n, curves in by_size.items()
    ]
    yield Claim("fig. 1c/d: AD falls more than LVC from the fewest to the most steps", text, "above", points)
    text = "the AD based estimation tends to have higher variance"
    for n, curves in by_size.items():
        name = f"fig. 7, N = {n}: AD / LVC, log ratio of summed std"
        yield ordering(curves, name, text, (ad, lvc), STEPS[1:], metric="deviation")


def _by_size_panel(found: dict[str, SweepCurves], metric: ts.Metric, estimator: str, is_median: bool) -> Panel:
    lines = []
    for n in SAMPLE_SIZES:
        curves = found[f"trajectories{n}"]
        lines.append(ts.curve(f"N = {n}", curves.x, curves.of[metric][estimator, "ESE"], is_median))
    title, label = f"{ts.TITLES[estimator]}, ESE", ts.axis_label(metric, is_median)
    return Panel(title, "inner steps K", label, lines, is_log_y=metric in ts.SPREADS)


def _figures(found: dict[str, SweepCurves]) -> list[Figure]:
    few = [_by_size_panel(found, metric, e, median) for metric, median in ts.SHOWN[:2] for e in ("lvc", "ad")]
    sizes = [_by_size_panel(found, metric, e, median) for metric, median in ts.SHOWN for e in ESTIMATORS]
    curves = found["permutations"]
    permutations = [
        ts.panel(curves, metric, e, PERMUTATIONS, median) for metric, median in ts.SHOWN for e in ESTIMATORS
    ]
    setting = "exact inner value and outer gradient, learning rate 10"
    text = f"Figures 1c and 1d: {setting}. Mean ± standard error and median over MDPs."
    beyond = f"Beyond the paper: all permutations, N = {PERMUTATIONS_AT}. {ts.CAPTION}"
    return [
        Figure("figure-1cd.png", text, few, columns=2),
        Figure("figure-7.png", f"Figure 7, with DiCE and Loaded-DiCE beyond the paper. {ts.CAPTION}", sizes, columns=4),
        Figure("permutations.png", beyond, permutations, columns=4),
    ]


INTRODUCTION = """
LIRPG's meta-gradient ∂J_R(θ_K)/∂φ in random tabular MDPs (20 states, 5 actions, Dirichlet 0.001, discount 0.8, uniform
θ₀, φ = 0): inner updates on the reward R + φ with generalised advantages (λ = 0.9), outer objective on R, held against
the exact meta-gradient. ESE: exact inner values, sampled derivatives, exact outer gradient, as in all of the paper's
runs. A correlation is that of one estimate, averaged over {trials} trials, one value per MDP. The scale of the values'
noise {scale}.
"""


def _report(folder: Path, done: Parts, is_quick: bool) -> None:
    found = ts.curves_of(SWEEPS, done)
    settings = first_settings(done)
    at_ese = [(name, "ESE") for name in ESTIMATORS]
    all_pairs = [(name, p) for name in ESTIMATORS for p in PERMUTATIONS]
    beyond = ts.summary_rows(found["permutations"], f"N = {PERMUTATIONS_AT}", all_pairs, (3,))
    # A single step needs no Hessian: AD, LVC and Loaded-DiCE coincide sample by sample.
    one_step = "figs. 1c/d, 7: AD, LVC, Loaded-DiCE with K = 1 on the same samples"
    table: list[Row | Claim] = [
        *ts.summary_rows(found[f"trajectories{SAMPLE_SIZES[0]}"], f"fig. 1c/d, N = {SAMPLE_SIZES[0]}", at_ese, (1, 5)),
        *ts.summary_rows(
            found[f"trajectories{SAMPLE_SIZES[-1]}"], f"fig. 1c/d, N = {SAMPLE_SIZES[-1]}", at_ese, (1, 5)
        ),
        ts.identity_row(list(found.values()), PERMUTATIONS, one_step, at=slice(1)),
        *claims(found),
        *(row._replace(paper="beyond the paper") for row in beyond),
    ]
    is_constant = settings["base"].get("is_noise_scale_constant", False)
    scale = "carries no derivative in φ, as in the release" if is_constant else "is differentiated in φ"
    introduction = INTRODUCTION.format(trials=settings["trials"], scale=scale)
    title = "Tabular LIRPG: a learnt intrinsic reward"
    ts.write_tabular_report(folder, title, introduction, found, table, _figures(found), is_quick)


ABOUT = "LIRPG in random tabular MDPs: AD and LVC along inner steps and sample sizes (figs 1cd, 7)"
_parts = partial(ts.parts, "lirpg", SWEEPS)
STUDY = Study(
    name="tabular-lirpg", description=ABOUT, seeds=ts.MDPS, parts=_parts, run_part=ts.run_part, report=_report
)
RELEASED_STUDY = replace(
    STUDY,
    name="tabular-lirpg-released",
    description="tabular-lirpg with the scale of the value noise a constant, as in the released code",
    parts=_released_parts,
)
