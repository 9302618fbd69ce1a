"""A node on which something else is installed: the run says which and what, in one line, and loses nothing."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from netns import Host
from ray_nodes import RayNodes, wait_until
from runs import Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

PONG = ("atari", "--env.game", "Pong", "--environments", "4", "--rollout-length", "5", "--updates", "12")


def without_envpool(host: Host) -> None:
    """`import envpool` fails there as where it is not installed."""
    spec = importlib.util.find_spec("envpool")
    assert spec is not None
    assert spec.submodule_search_locations
    nothing = host.folder / "nothing"
    nothing.mkdir(exist_ok=True)
    (nothing / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'envpool'\", name='envpool')\n")
    host.replace(Path(spec.submodule_search_locations[0]), by=nothing)


def with_another_torch(host: Host) -> None:
    """The metadata of torch say 1.0 there."""
    (metadata,) = [x for x in importlib.metadata.files("torch") or () if x.name == "METADATA"]
    place = Path(str(metadata.locate()))
    other = host.folder / "METADATA"
    other.write_text(re.sub(r"^Version: .*$", "Version: 1.0", place.read_text(), count=1, flags=re.MULTILINE))
    host.replace(place, by=other)


@pytest.mark.parametrize(
    ("make_odd", "words", "complaint"),
    [
        (without_envpool, PONG, r"cannot make AtariConfig there \(No module named 'envpool'\)"),
        (with_another_torch, ("--updates", "5000"), r"has torch \S+ where the learner has \S+"),
    ],
    ids=["without envpool", "another torch"],
)
def test_a_run_on_an_odd_node_ends_in_one_line(
    nodes: RayNodes,
    start: Callable[..., Run],
    make_odd: Callable[[Host], None],
    words: tuple[str, ...],
    complaint: str,
) -> None:
    make_odd(nodes.network.hosts["worker-1"])
    try:
        run = start(*words, "--actors", "4")
        assert run.job.wait(300) == "FAILED"
        assert run.job.exit_code == 2
        last = run.job.output.strip().splitlines()[-1]
        assert re.fullmatch(rf"metagrad: node = '10\.77\.0\.\d+': {complaint}; install the same .*", last)
        assert "Traceback" not in run.job.output
        assert not run.folder.exists()  # the same command may be given again
    finally:
        nodes.network.hosts["worker-1"].power_off()


def test_an_odd_node_that_joins_a_run_is_not_used(nodes: RayNodes, start: Callable[..., Run]) -> None:
    run = start("--updates", "300", "--schedule", "peek", "--actors", "9", "--environments-per-actor", "2")
    run.wait_for_updates(20)
    odd = nodes.network.add("worker-3")
    with_another_torch(odd)
    nodes.start("worker-3", 4)
    wait_until(lambda: "has torch 1.0" in run.job.output, 200, lambda: run.job.output)
    run.finish()
    (line,) = [line for line in run.job.output.splitlines() if "has torch 1.0" in line]
    assert f"given up (node = '{odd.address}': has torch 1.0 where the learner has" in line
