"""Study `discounting-chain`: its parts, and a part against the agents' updates."""

import json

import pytest
import torch

from metagrad.experiments.debiasing import discounting_chain_study as study
from metagrad.experiments.debiasing.discounting_chain_agents import ChainAgent, advance, start
from metagrad.experiments.debiasing.discounting_chain_problem import (
    Objective,
    discounts,
    mean_return,
    sample_counts,
    tables,
)


def test_parts_are_five_agents_with_ten_seeds_and_two_variants() -> None:
    parts = study.STUDY.parts(study.STUDY.seeds, False)
    assert len(parts) == 5 * 2 + 4 + 4
    seeds: dict[str, list[int]] = {arm: [] for arm in ("a2c", "mg", "mg-outer", "bmg", "bmg-outer")}
    for settings in parts.values():
        if not settings["is_normalised"] and not settings["is_first_value_exact"]:
            seeds[settings["arm"]] += settings["seeds"]
        else:
            assert settings["meta"] != "none"
    assert all(each == list(range(10)) for each in seeds.values())
    assert {(s["updates"], s["record_every"]) for s in parts.values()} == {(50_000, 50)}
    assert parts["bmg-outer-normalised-seed0"]["seeds"] == [0]
    assert parts["mg-exact-start-seeds0-4"]["is_first_value_exact"]


@pytest.mark.parametrize(("few", "more"), [(5, 10), (10, 12), (2, 4)])
def test_more_seeds_add_parts(few: int, more: int) -> None:
    parts, others = (
        {name: s for name, s in study.STUDY.parts(seeds, True).items() if not s["is_first_value_exact"]}
        for seeds in (few, more)
    )
    assert parts.items() <= others.items()
    # And no name ever stands for other settings.
    for seeds in range(1, 12):
        every = study.STUDY.parts(seeds, True)
        assert all(study.STUDY.parts(more, True).get(name, settings) == settings for name, settings in every.items())


@pytest.mark.parametrize(
    ("name", "rows"), [("mg-outer-seeds0-4", 135), ("bmg-normalised-seed0", 495), ("a2c-seeds0-4", 135)]
)
def test_a_part_is_its_agents_updates(name: str, rows: int) -> None:
    settings = study.STUDY.parts(5, True)[name] | {"updates": 4, "record_every": 2}
    result = study.run_part(settings)
    agent = ChainAgent(settings["meta"], settings["uses_outer_value"], Objective(settings["is_normalised"]))
    table, generators = tables(), [torch.Generator().manual_seed(seed) for seed in settings["seeds"]]
    state = start(agent, table, generators)
    for done in range(1, 5):
        state, logged = advance(agent, table, state, lambda theta: sample_counts(table, theta, rows, generators))
        if done % 2 == 0:
            k = done // 2 - 1
            assert [row[k] for row in result["discount"]] == pytest.approx(discounts(state.eta).tolist(), rel=1e-6)
            assert [row[k] for row in result["return"]] == pytest.approx(mean_return(table, logged.counts).tolist())
            if logged.outer is not None:
                shown = [row[k] for row in result["first_advantage"]]
                assert shown == pytest.approx(logged.outer.first_advantage.tolist(), rel=1e-6)
    assert result["updates"] == [2, 4]
    assert ("advantage" in result) == (agent.meta != "none")
    assert json.loads(json.dumps(result)) == result
