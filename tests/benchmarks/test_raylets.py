import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import raylets


def resources() -> dict[str, float]:
    """In a process of its own, connected to the cluster."""
    import ray

    from cluster.ray_session import ANY_ROOM, ray_session

    with ray_session(ANY_ROOM):
        return {"nodes": len(ray.nodes()), "cpus": ray.cluster_resources()["CPU"]}


def processes_of(port: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:  # it has ended
            continue
    return [words for words in found if f"127.0.0.1:{port}" in words]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_so_many_nodes_are_there_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # this file, by name
    before = dict(os.environ)
    with raylets.raylets((2, 3)) as variables:
        port = variables["RAY_ADDRESS"].rpartition(":")[2]
        assert processes_of(port)
        code = "import test_raylets; print(test_raylets.resources())"
        said = subprocess.run(
            [sys.executable, "-c", code], env=before | variables, capture_output=True, text=True, check=True
        ).stdout
        assert said.strip().splitlines()[-1] == "{'nodes': 2, 'cpus': 5.0}"
    assert not processes_of(port)
    assert dict(os.environ) == before


def test_a_node_that_does_not_start_is_told_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho no memory\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(raylets, "_RAY", program)
    with pytest.raises(RuntimeError, match="no memory"), raylets.raylets((1,)):
        pass


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho Ray runtime started\nwhile true; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(raylets, "_RAY", program)
    monkeypatch.setattr(raylets, "_SECONDS_TO_END", 0.2)
    started: list[subprocess.Popen[bytes]] = []
    real = raylets._start
    monkeypatch.setattr(raylets, "_start", lambda *words: started.append(real(*words)) or started[-1])
    with raylets.raylets((1,)):
        assert started[0].poll() is None
    assert started[0].poll() == -signal.SIGKILL
