import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import raylets


def resources() -> dict[str, float]:
    """In a process of its own, connected to the cluster."""
    import ray

    from metagrad.cluster.on_ray.session import ANY_ROOM, ray_session

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


def test_a_node_ends_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho $$ > $0.pid\necho Ray runtime started\nexec sleep 60\n")
    program.chmod(0o755)
    code = (
        "import time; from pathlib import Path; from benchmarks import raylets\n"
        f"raylets._RAY = Path({str(program)!r})\n"
        "with raylets.raylets((1,)): print('up', flush=True); time.sleep(60)"
    )
    words, environment = [sys.executable, "-c", code], os.environ | {"TMPDIR": str(tmp_path)}  # nobody else clears it
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as benchmark:
        assert benchmark.stdout is not None
        assert benchmark.stdout.readline() == "up\n"
        benchmark.kill()
    pid = int(Path(f"{program}.pid").read_text())
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """False for one that has ended and whom nobody has asked yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
