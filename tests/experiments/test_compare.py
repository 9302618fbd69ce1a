from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metagrad.experiments.lifetimes import held_out
from metagrad.experiments.lifetimes.compare import main
from metagrad.experiments.lifetimes.held_out import BUDGETS, uncorrected
from metagrad.experiments.reporting.statistics import interquartile_interval, interquartile_mean
from metagrad.lpg import Lpg
from metagrad.rule_files import encoded_rule


@pytest.mark.slow
def test_rules_of_files_stand_beside_a2c(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(BUDGETS, "long", replace(BUDGETS["long"], environments=4))
    monkeypatch.setattr(held_out, "EVALUATED", 16)
    rule, own = Lpg(units=4, predictions=3, embedding=3), uncorrected(BUDGETS["long"].a2c)
    lpg, copy = tmp_path / "lpg.npz", tmp_path / "a2c.npz"
    lpg.write_bytes(encoded_rule(rule, rule.init(torch.Generator().manual_seed(0)), {}))
    copy.write_bytes(encoded_rule(own.rule, own.eta, {}))
    main([str(lpg), str(copy), "--seeds", "2", "--worlds", "2", "--updates", "10", "--policy-learning-rate", "160"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["A2C, tuned", str(lpg), str(copy)]
    assert rows[0][1:] == rows[2][1:]
    assert rows[0][1:] != rows[1][1:]


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.npz")])
    assert "error: rule = " in capsys.readouterr().err


def test_interval_shrinks_with_seeds_and_holds_the_mean() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (100, 5))
    few, many = interquartile_interval(draws[:5]), interquartile_interval(draws)
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    for trials, (low, high) in ((draws[:5], few), (draws, many)):
        assert low < interquartile_mean(trials.flatten()) < high


def test_without_spread_over_seeds_there_is_no_interval() -> None:
    low, high = interquartile_interval([[0.0, 1.0, 5.0]] * 4)
    assert low == high == pytest.approx(interquartile_mean([0.0, 1.0, 5.0] * 4))
