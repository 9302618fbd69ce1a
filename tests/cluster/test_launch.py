from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.gym import GymConfig
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.launch import default_run_dir, run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.learning import actor_setups, resolve_device, set_tf32
from metagrad.distributions import Categorical
from metagrad.errors import ConfigurationError
from metagrad.learner.checkpoint import load, paths
from metagrad.networks import Mlp, NatureCnn
from metagrad.precision import Precision

Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == CPU
    for name, count, rule in (
        ("cuda", 0, "this machine has 0 CUDA devices; use auto"),
        ("cuda:1", 1, "this machine has 1 CUDA device; use auto"),
        ("mps", 0, "only cpu and cuda are supported"),
        ("gpu", 0, "is not a torch device; use auto, cpu or cuda"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(ConfigurationError, match=rf"^device = '{name}': {rule}"):
            resolve_device(name)
    for is_available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize(("before", "after"), [("float32", "tf32"), ("tf32", "float32"), ("tf32", "bf16-mixed")])
def test_tf32_is_a_precision_of_its_own(before: Precision, after: Precision) -> None:
    set_tf32(before)
    try:
        set_tf32(after)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (after == "tf32")
    finally:
        set_tf32("float32")


def test_tf32_on_a_cpu_is_refused_before_anything_starts(tiny: Tiny, tmp_path: Path) -> None:
    rule = r"^precision = 'tf32': TF32 is arithmetic of CUDA devices, and the learner's is cpu"
    for topology in ("colocated", "ray"):
        with pytest.raises(ConfigurationError, match=rule):
            run(tiny(precision="tf32", topology=topology, device="cpu"), tmp_path / "run", False, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_auto_is_settled_by_the_machine_and_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for units, expected in (({"amx_bf16": True}, "bf16-mixed"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        console = Console(file=StringIO(), width=200)
        summary = run(tiny(precision="auto", updates=1), tmp_path / expected, False, console)
        assert summary["precision"] == expected
        assert f"precision: {expected}, chosen for this machine" in console.file.getvalue()
        assert RunFolder(tmp_path / expected).experiment().precision == expected
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigurationError, match=r"^precision = 'auto': asks the hardware of this machine, and the l"):
        run(tiny(precision="auto", topology="ray"), tmp_path / "cluster", False, Console(quiet=True))


def test_a_machine_without_bfloat16_is_told_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    console = Console(file=StringIO(), width=200)
    assert run(tiny(precision="bf16-mixed", updates=2), tmp_path / "run", False, console)["updates"] == 2
    text = console.file.getvalue()
    assert text.count("precision bf16-mixed: this cpu has no units for it and is slower than in float32") == 1


@pytest.mark.parametrize(("before", "after"), [("float32", "bf16-mixed"), ("bf16-mixed", "float32")])
def test_a_run_continues_in_another_precision_and_says_so(
    tiny: Tiny, tmp_path: Path, before: Precision, after: Precision
) -> None:
    run(tiny(precision=before, updates=2), tmp_path / "run", False, Console(quiet=True))
    console = Console(file=StringIO(), width=200)
    assert run(tiny(precision=after, updates=4), tmp_path / "run", True, console)["precision"] == after
    assert f"precision {after} now, {before} before: the run continues in other arithmetic" in console.file.getvalue()
    console = Console(file=StringIO(), width=200)
    run(tiny(precision=after, updates=5), tmp_path / "run", True, console)
    assert "before" not in console.file.getvalue()


@pytest.mark.parametrize("topology", ["colocated", "ray"])
def test_actors_and_evaluation_have_the_learners_arithmetic(tiny: Tiny, topology: str) -> None:
    experiment = tiny(precision="bf16-mixed", topology=topology)
    assert {setup.precision for setup in actor_setups(experiment, CPU, 0)} == {"bf16-mixed"}
    with closing(Actor(actor_setups(experiment, CPU, 0)[0])) as actor:
        spec = probe(experiment.env)
        algorithm = experiment.algorithm(spec)
        state = algorithm.init(0, CPU)
        trajectory = actor.rollout(state.snapshot(), 0).trajectory
        logits = {}
        for name, network in (("bf16-mixed", algorithm.network), ("float32", tiny().algorithm(spec).network)):
            rows = trajectory.observation[:-1].flatten(0, 1)
            logits[name] = network.apply(state.theta, rows, ("logits",))["logits"].view(3, -1, spec.num_actions)
        log_probs = {name: Categorical(x).log_prob(trajectory.action) for name, x in logits.items()}
        gaps = {name: x - trajectory.behaviour_log_prob for name, x in log_probs.items()}
        gaps = {name: gap[trajectory.valid].abs().max().item() for name, gap in gaps.items()}
        assert gaps["bf16-mixed"] < 1e-6 < gaps["float32"]


def test_every_actor_has_its_share_and_its_own_place(tiny: Tiny) -> None:
    setups = actor_setups(tiny(actors=4, environments=8), CPU, 5)
    assert [setup.index for setup in setups] == [0, 1, 2, 3]
    assert {setup.batch_size for setup in setups} == {2}
    assert actor_setups(tiny(), CPU, 5)[0].seed != actor_setups(tiny(), CPU, 6)[0].seed
    assert actor_setups(tiny(), CPU, 5)[0].seed != actor_setups(tiny(seed=1), CPU, 5)[0].seed


@pytest.mark.parametrize(
    ("changes", "learner", "device"),
    [
        ({}, "cuda:1", "cuda:1"),
        ({"actor_device": "cpu"}, "cuda", "cpu"),
        ({"env": AtariConfig(), "network": NatureCnn()}, "cuda", "cuda"),
        ({"env": GymConfig(id="CartPole-v1"), "network": Mlp()}, "cuda", "cpu"),
        ({"env": GymConfig(id="CartPole-v1"), "network": Mlp(), "actor_device": "cuda"}, "cuda", "cuda"),
        ({"topology": "ray"}, "cuda", "cpu"),
        ({"topology": "ray", "actor_gpus": 0.1}, "cpu", "cuda"),
    ],
    ids=str,
)
def test_actors_evaluate_the_policy_where_the_run_says(
    tiny: Tiny, changes: dict[str, Any], learner: str, device: str
) -> None:
    assert actor_setups(tiny(**changes), torch.device(learner), 0)[0].device == device


def test_colocated_actors_on_a_gpu_that_is_not_there_are_refused(tiny: Tiny, tmp_path: Path, console: Console) -> None:
    line = r"^actor_device = 'cuda': colocated actors use the learner's device, which is cpu; use auto or cpu"
    with pytest.raises(ConfigurationError, match=line):
        run(tiny(actor_device="cuda"), tmp_path / "run", False, console)
    assert not (tmp_path / "run").exists()


def test_the_default_folder_names_experiment_and_seed(tiny: Tiny) -> None:
    assert default_run_dir(tiny(seed=4)).parts[:1] == ("runs",)
    assert default_run_dir(tiny(seed=4)).name.startswith("snake-6x6-seed4-")


@pytest.mark.parametrize(
    "changes",
    [
        {"lookahead": "fork", "meta": {"n": 2}},
        {"lookahead": "separate", "meta": {"n": 2, "product": "recompute"}},
    ],
    ids=str,
)
@pytest.mark.thinned(3)
def test_the_same_seed_gives_the_same_bits(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, changes: dict[str, Any]
) -> None:
    """Other schemes: a run that was stopped and one that was not have the same bits (test_train.py)."""
    for name in ("a", "b"):
        run(tiny(updates=4, **changes), tmp_path / name, False, console)
    assert learner_of(tmp_path / "a") == learner_of(tmp_path / "b")


def test_another_seed_gives_other_bits(tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any) -> None:
    for seed in (0, 1):
        run(tiny(updates=1, seed=seed, meta={"n": 0}), tmp_path / str(seed), False, console)
    assert learner_of(tmp_path / "0")["learner.theta"] != learner_of(tmp_path / "1")["learner.theta"]


def test_lookahead_elsewhere_leaves_the_real_stream_alone(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    """With the meta-parameters' step too small to matter, θ is that of plain A2C on the same environments."""
    frozen = {"n": 2, "optimizer": replace(tiny().meta.optimizer, learning_rate=1e-30)}
    theta = {}
    for lookahead in ("continue", "fork", "separate", "plain"):
        changes = {"meta": {"n": 0}} if lookahead == "plain" else {"meta": frozen, "lookahead": lookahead}
        run(tiny(updates=4, **changes), tmp_path / lookahead, False, console)
        theta[lookahead] = learner_of(tmp_path / lookahead)["learner.theta"]
    assert theta["fork"] == theta["plain"]
    assert theta["separate"] == theta["plain"]
    assert theta["continue"] != theta["plain"]


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_it_used(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    every = CheckpointConfig(every=4, keep=3)
    run(tiny(updates=10, checkpoint=every), tmp_path / "whole", False, console)
    run(tiny(updates=6, checkpoint=every), tmp_path / "broken", False, console)
    newest = paths(tmp_path / "broken" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    summary = run(tiny(updates=10, checkpoint=every), tmp_path / "broken", True, console)
    assert "checkpoint unreadable, using update-000000004.pt instead: update-000000006.pt: " in text(console)
    assert "at update 4" in text(console)
    assert summary["updates"] == 10
    assert learner_of(tmp_path / "broken") == learner_of(tmp_path / "whole")


def test_without_a_readable_checkpoint_there_is_nothing_to_continue(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    run(tiny(updates=2), tmp_path, False, console)
    for path in paths(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(
        ConfigurationError, match=r"^run-dir = .*no readable checkpoint.*; restore one of them; moved out of"
    ):
        run(tiny(updates=4), tmp_path, True, console)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda tree: {"a": 1}, "device"),
        (lambda tree: tree | {"learner": 3}, "update"),
        (lambda tree: tree | {"learner": tree["learner"] | {"theta": torch.zeros(3)}}, "theta"),
        (lambda tree: tree | {"learner": tree["learner"] | {"optimizer": tree["learner"]["meta_optimizer"]}}, "optim"),
        (lambda tree: tree | {"learner": tree["learner"] | {"eta": torch.zeros(7)}}, "eta"),
        (lambda tree: tree | {"actors": tree["actors"][:1]}, "actors"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    tiny: Tiny, console: Console, tmp_path: Path, damage: Callable[[Any], Any], what: str
) -> None:
    run(tiny(updates=2), tmp_path, False, console)
    (path,) = paths(tmp_path / "checkpoints")
    torch.save(damage(load(path)), path)
    before = (tmp_path / "config.json").read_bytes()
    message = rf"^checkpoint = .*update-000000002.pt': its {what}\w* is not as this run has it: .*; put the run's own"
    with pytest.raises(ConfigurationError, match=message):
        run(tiny(updates=4), tmp_path, True, console)
    for update in (None, 2):
        with pytest.raises(ConfigurationError, match=message):
            evaluate_run(tmp_path, update, 1, 0, False, False)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_serves_one_process_at_a_time(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=2), tmp_path / "old", False, console)
    for folder, is_resumed in ((tmp_path / "old", True), (tmp_path / "new", False)):
        with (
            RunFolder(folder).held(),
            pytest.raises(ConfigurationError, match=r"^run-dir = .*: another process is working in it; wait"),
        ):
            run(tiny(updates=4), folder, is_resumed, console)
        run(tiny(updates=4), folder, is_resumed, console)


def test_a_refused_run_gives_its_folder_back(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"^RAY_ADDRESS = '127.0.0.1:1': no Ray cluster answers there"):
        run(tiny(topology="ray"), tmp_path / "run", False, console)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_changes_its_kind_of_device_is_told_what_starts_afresh(
    tiny: Tiny, console: Console, tmp_path: Path, device: str
) -> None:
    run(tiny(updates=2), tmp_path, False, console)
    path = paths(tmp_path / "checkpoints")[-1]
    tree = load(path)
    assert tree["device"] == "cpu"
    torch.save(tree | {"device": device}, path)
    run(tiny(updates=4), tmp_path, True, console)
    is_told = "on cpu now, cuda before: random streams" in console.file.getvalue()  # type: ignore[attr-defined]
    assert is_told == (device == "cuda")


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0,1", "mps"])
def test_on_a_cluster_a_learner_has_one_gpu_or_none(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigurationError, match=f"^device = '{device}': on a cluster the learner has one GPU or none"):
        run(tiny(topology="ray", device=device), tmp_path / "run", False, console)
    assert not (tmp_path / "run").exists()
