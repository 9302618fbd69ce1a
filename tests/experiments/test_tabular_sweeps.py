"""Parts against single estimations scored by hand; curves, statistics and panels of made-up results."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from metagrad.cluster.studies.study import Study
from metagrad.experiments.gradient_bias import tabular_lirpg, tabular_maml
from metagrad.experiments.gradient_bias import tabular_sweeps as ts
from metagrad.experiments.gradient_bias.tabular_estimators import Estimation, lirpg_gradients, maml_gradients, mdp_stack
from metagrad.experiments.reporting.statistics import mean_and_error
from metagrad.tabular import lirpg_meta_gradient, maml_meta_gradient

SWEEP = ts.Sweep(
    name="steps",
    field="steps",
    label="inner steps K",
    values=(1, 2, 3),
    quick_values=(1, 2),
    base={"learning_rate": 2.0, "trajectories": 4, "inner_lambda": 0.9},
    estimators=("ad", "dice"),
    permutations=("SSE", "ESE"),
)


def made_up(seeds: int, scale: float = 1.0):
    """Results whose number is scale · (100 · MDP + 10 · permutation + x) + estimator."""
    return {
        name: (
            settings,
            {
                e: {
                    p: {
                        m: [scale * (100 * settings["mdp"] + 10 * j + x) + i for x in settings["values"]]
                        for m in ts.METRICS
                    }
                    for j, p in enumerate(SWEEP.permutations)
                }
                for i, e in enumerate(SWEEP.estimators)
            },
        )
        for name, settings in ts.parts("maml", [SWEEP], seeds, False).items()
    }


def test_more_seeds_add_parts_and_change_none() -> None:
    few, many = (ts.parts("maml", [SWEEP], seeds, False) for seeds in (2, 12))
    assert list(few) == ["steps-mdp0", "steps-mdp1"]
    assert len(many) == 12
    assert few.items() <= many.items()
    quick = ts.parts("maml", [SWEEP], 1, True)["steps-mdp0"]
    assert (quick["values"], quick["trials"], quick["mdp"]) == ([1, 2], ts.QUICK_TRIALS, 0)


@pytest.mark.parametrize("study", [tabular_maml.STUDY, tabular_lirpg.STUDY], ids=lambda study: study.name)
def test_quick_is_a_part_of_the_whole(study: Study) -> None:
    quick, whole = study.parts(10, True), study.parts(10, False)
    assert quick.keys() < whole.keys()
    for name, settings in quick.items():
        assert set(settings["values"]) < set(whole[name]["values"])
        assert settings["trials"] < whole[name]["trials"]
    assert len(study.parts(2, True)) == {"tabular-maml": 6, "tabular-lirpg": 12}[study.name]


@pytest.mark.parametrize("problem", ["maml", "lirpg"])
def test_a_part_scores_every_estimation_against_the_exact_meta_gradient(problem: ts.Problem) -> None:
    settings = ts.parts(problem, [SWEEP], 3, True)["steps-mdp2"] | {"trials": 5}
    result = ts.run_part(settings)
    assert ts.run_part(settings) == result
    zeros, mdps = torch.zeros(100, dtype=torch.float64), mdp_stack([2] * 5)
    mdp = mdps._replace(transition=mdps.transition[0], reward=mdps.reward[0], initial=mdps.initial[0])
    for i, steps in enumerate((1, 2)):
        setting = Estimation(
            estimator="dice", permutation="SSE", learning_rate=2.0, trajectories=4, inner_lambda=0.9, steps=steps
        )
        if problem == "maml":
            x, y = maml_gradients(setting, mdps, 2).numpy(), maml_meta_gradient(mdp, zeros, 2.0, steps).numpy()
        else:
            x, y = lirpg_gradients(setting, mdps, 2).numpy(), lirpg_meta_gradient(mdp, zeros, zeros, 2.0, steps).numpy()
        found = {metric: values[i] for metric, values in result["dice"]["SSE"].items()}
        assert found["pearson"] == pytest.approx(np.mean([np.corrcoef(row, y)[0, 1] for row in x]), abs=1e-12)
        cosines = x @ y / np.linalg.norm(x, axis=1) / np.linalg.norm(y)
        assert found["cosine"] == pytest.approx(cosines.mean(), abs=1e-12)
        assert found["deviation"] == pytest.approx(x.std(axis=0, ddof=1).sum(), rel=1e-9)
        assert found["variance"] == pytest.approx(x.var(axis=0, ddof=1).sum(), rel=1e-9)
    assert result["ad"]["SSE"]["pearson"] != result["dice"]["SSE"]["pearson"]
    assert result["ad"]["ESE"]["pearson"] != result["ad"]["SSE"]["pearson"]


def test_curves_are_in_the_order_of_the_mdps() -> None:
    done = made_up(12)  # "mdp10" comes before "mdp2" by name
    curves = ts.curves_of([SWEEP], dict(sorted(done.items())))["steps"]
    assert curves.x.tolist() == [1.0, 2.0, 3.0]
    assert curves.of["cosine"]["dice", "ESE"].tolist() == [[100 * m + 10 + x + 1 for x in (1, 2, 3)] for m in range(12)]


def test_comparisons_are_paired() -> None:
    curves = ts.curves_of([SWEEP], made_up(2))["steps"]
    points = ts.compared(curves, "pearson", ("dice", "ESE"), ("ad", "SSE"), (1, 3, 7))
    assert [point.where for point in points] == ["K = 1", "K = 3"]
    assert [point.difference.tolist() for point in points] == [[11.0, 11.0]] * 2
    assert len(ts.compared(curves, "pearson", ("dice", "ESE"), ("ad", "SSE"))) == 3
    (ratio, *_) = ts.compared(curves, "variance", ("dice", "ESE"), ("ad", "SSE"))
    np.testing.assert_allclose(ratio.difference, np.log([12 / 1, 112 / 101]))
    rise = ts.change(curves, "pearson", ("ad", "SSE"))
    assert rise.where == "K = 1 to 3"
    assert rise.difference.tolist() == [2.0, 2.0]


def test_numbers_hold_every_statistic(tmp_path: Path) -> None:
    ts.write_numbers(tmp_path / "numbers.csv", ts.curves_of([SWEEP], made_up(4)))
    with (tmp_path / "numbers.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 2 * 2 * 4
    (line,) = (
        row
        for row in table
        if (row["x"], row["estimator"], row["permutation"], row["metric"]) == ("2", "dice", "ESE", "cosine")
    )
    assert line["sweep"] == "steps"
    assert {name: float(line[name]) for name in ("mdps", "mean", "median", "iqm", "low", "high")} == {
        "mdps": 4,
        "mean": 163,
        "median": 163,
        "iqm": 163,
        "low": 13,
        "high": 313,
    }
    assert float(line["std"]) == pytest.approx(np.std([13, 113, 213, 313], ddof=1), rel=1e-5)


def test_bands_and_labels() -> None:
    curves = ts.curves_of([SWEEP], made_up(4))["steps"]
    mean = ts.panel(curves, "pearson", "dice", ("SSE", "ESE"), is_median=False)
    assert (mean.title, mean.x_label, mean.y_label) == ("DiCE", "inner steps K", "correlation, mean")
    assert not mean.is_log_y
    label, x, middle, error = mean.curves[1]
    assert label == "ESE"
    np.testing.assert_allclose(x, [1, 2, 3])
    np.testing.assert_allclose(middle, [162, 163, 164])
    np.testing.assert_allclose(error, np.std([0, 100, 200, 300], ddof=1) / 2)
    median = ts.panel(curves, "variance", "dice", ("SSE",), is_median=True)
    assert median.y_label == "total variance, median"
    assert median.is_log_y
    assert median.curves[0][3] is None
    _, _, middle, error = ts.curve("x", x, np.array([[0.0, 1.0], [0.0, 5.0], [9.0, 9.0]]), is_median=True)
    assert np.asarray(middle).tolist() == [0.0, 5.0]
    assert error is None
    assert np.isnan(mean_and_error(np.ones((1, 2)))[1]).all()


def test_summary_rows() -> None:
    curves = ts.curves_of([SWEEP], made_up(4))["steps"]
    rows = ts.summary_rows(curves, "fig. 9", [("dice", "ESE")], (2, 8))
    assert len(rows) == 1
    assert rows[0].quantity == "fig. 9, DiCE ESE, K = 2: correlation"
    assert rows[0].ours == "mean 163, median 163, IQM 163 (cosine: mean 163)"
    assert rows[0].seeds == "4 MDPs"
    assert rows[0].spread == "std 129, from 13 to 313"
    alone = ts.summary_rows(ts.curves_of([SWEEP], made_up(1))["steps"], "fig. 9", [("dice", "ESE")], (2,))
    assert alone[0].spread == "std -, from 13 to 13"
