"""Sizes that no machine could hold are refused before anything is made."""

import dataclasses
import re
from pathlib import Path

import pytest

from metagrad.actors.rollout import probe
from metagrad.cli.main import main
from metagrad.cluster.config import size
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments import EXPERIMENTS
from metagrad.networks import build_network

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", ["demo", "stacx-impala", "discounting-chain"])
def test_parameters_are_counted_before_they_are_made(name: str) -> None:
    experiment = EXPERIMENTS[name]()
    assert isinstance(experiment, Experiment)
    spec = probe(experiment.env)
    shape = (spec.observation_shape, spec.num_actions, experiment.has_outer_critic)
    assert experiment.parameters(spec) == build_network(experiment.network, *shape).layout.size > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--meta.n", "99999999999999999999"), "meta.n = 99999999999999999999: must be at most 10,000; lower it"),
        (("--meta.bootstrap.updates", "2147483648"), "meta.bootstrap.updates = 2147483648: must be at most 10,000"),
        (("--network.channels", "1048576"), r"network.channels = 1048576: .* at most 2\^16; change it"),
        (("--network.channels", "65536"), "meta.n = 3: looking through so many updates takes 1,349.* GiB"),
        (("--environments", "2097152", "--rollout-length", "1000"),
         "environments x rollout_length = '2097152 x 1000': a batch of rollouts is 1,4.* GiB, and "),
        (("--meta.n", "10000", "--environments", "200000"), "meta.n = 10000: looking through so many updates takes "),
        (("--updates", "1e23"), "updates = '1e23': invalid literal for int"),
        (("--actors", "99999999", "--environments", "99999999"), "actors = 99999999: must be at most 65,536"),
        (("--learner-cpus", "99999999"), r"learner_cpus = 99999999: must lie in \[1, 1024\]; change it"),
    ],
)  # fmt: skip
def test_what_no_machine_holds_is_refused_in_one_line(
    words: tuple[str, ...], line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "nobody:1")  # whatever this machine has
    assert main(("train", "demo", *words)) == 2
    (refusal,) = capsys.readouterr().err.splitlines()
    assert re.match(f"metagrad: {line}", refusal), refusal


def test_a_run_that_stays_here_fits_into_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = EXPERIMENTS["demo"]()
    spec = probe(experiment.env)
    size.require_room_here(experiment, spec, 10**6)
    monkeypatch.setattr("os.sysconf", lambda _: 2**10)
    with pytest.raises(ValueError, match=r"^network = 'SnakeCnn': its 1,000,000 parameters .*this machine has 0.0 GiB"):
        size.require_room_here(experiment, spec, 10**6)


def test_a_look_ahead_holds_a_batch_and_a_gradient_for_each_update(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = EXPERIMENTS["demo"]()
    assert isinstance(demo, Experiment)
    spec = probe(demo.env)
    batch = size.batch_bytes(spec, demo.environments, demo.rollout_length)
    longer = dataclasses.replace(demo, meta=dataclasses.replace(demo.meta, n=9))
    monkeypatch.setattr(size, "MOST_BYTES", 16 * 100 + 10 * batch + 9 * 400)
    size.require_possible(longer, spec, 100)
    monkeypatch.setattr(size, "MOST_BYTES", 16 * 100 + 10 * batch + 9 * 400 - 1)
    with pytest.raises(ValueError, match=r"^meta.n = 9: looking through so many updates"):
        size.require_possible(longer, spec, 100)
