"""The shell scripts with what they call replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DRAIN = ROOT / "docker" / "drain.sh"


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A Slurm of two nodes; Ray that runs until it is ended; a run that lasts a minute and, stopped, exits with 75."""
    log = tmp_path / "log"
    fakes = tmp_path / "fakes"
    program(fakes, "scontrol", f'if [ "$1" = show ]; then printf "a\\nb\\n"; else echo "scontrol $*" >> "{log}"; fi')
    program(fakes, "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    program(fakes, "hostname", "echo 10.0.0.7 fe80::1")
    metagrad = tmp_path / "submitted" / ".venv" / "bin"
    program(metagrad, "metagrad", "")
    program(
        metagrad,
        "ray",
        f"""
        if [ "$1" = status ]; then printf " 1 node_x\\n 1 node_y\\n"; exit; fi
        echo "ray $*" >> "{log}"; trap 'echo "ended $2" >> "{log}"; kill $!; exit' TERM; sleep 60 & wait""",
    )
    program(
        metagrad,
        "python",
        f"""
        echo "run $RAY_ADDRESS $RAY_AUTH_MODE ${{*:2}}" >> "{log}"
        [ "$3" != broken ] || exit 3
        [ "$3" != short ] || exit 0
        trap 'sleep 0.2; echo checkpoint >> "{log}"; kill $!; exit 75' TERM; sleep 60 & wait""",
    )
    (tmp_path / "token").write_text("secret")
    return tmp_path


def sbatch(nodes: Path, *words: str, **more: str) -> "subprocess.Popen[str]":
    environment = {
        "PATH": f"{nodes / 'fakes'}:{os.environ['PATH']}",
        "HOME": str(nodes),
        "SLURM_SUBMIT_DIR": str(nodes / "submitted"),
        "SLURM_JOB_NODELIST": "[a-b]",
        "SLURM_JOB_ID": "123",
        "SLURM_CPUS_PER_TASK": "4",
        "RAY_AUTH_TOKEN_PATH": str(nodes / "token"),
    }
    script = ROOT / "deploy" / "slurm" / "metagrad.sh"
    return subprocess.Popen(
        ["bash", str(script), *words],
        env=environment | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def log(nodes: Path) -> list[str]:
    return (nodes / "log").read_text().splitlines() if (nodes / "log").exists() else []


def wait_for(nodes: Path, start: str) -> None:
    end = time.monotonic() + 30
    while not any(line.startswith(start) for line in log(nodes)):
        assert time.monotonic() < end, log(nodes)
        time.sleep(0.02)


def test_a_slurm_job_makes_a_cluster_and_ends_as_its_run(nodes: Path) -> None:
    job = sbatch(nodes, "/runs/a", "short")
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 0, output
    lines = log(nodes)
    assert (
        "ray start --head --node-ip-address=10.0.0.7 --port=10123 --num-cpus=4 --include-dashboard=false --block"
        in lines
    )
    assert "ray start --address=10.0.0.7:10123 --num-cpus=4 --block" in lines
    assert "run 10.0.0.7:10123 token /runs/a short" in lines
    assert lines.count("ended --head") + sum(line.startswith("ended --address") for line in lines) == 2
    job = sbatch(nodes, "/runs/a", "broken")
    job.communicate(timeout=30)
    assert job.returncode == 3


def test_a_slurm_job_that_is_taken_away_writes_a_checkpoint_and_queues_again(nodes: Path) -> None:
    job = sbatch(nodes, "/runs/a", "demo", "--seed", "1")
    wait_for(nodes, "run ")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 0, output
    lines = log(nodes)
    assert lines.index("checkpoint") < lines.index("scontrol requeue 123")


@pytest.mark.parametrize(
    ("words", "changes", "line"),
    [
        ((), {}, "metagrad: usage: sbatch metagrad.sh RUN_DIR EXPERIMENT"),
        (
            ("/runs/a", "demo"),
            {"RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "metagrad: RAY_AUTH_TOKEN_PATH = '/nowhere': no token",
        ),
        (("/runs/a", "demo"), {"METAGRAD_BIN": "/nowhere"}, "metagrad: METAGRAD_BIN = '/nowhere': holds no metagrad"),
    ],
)
def test_a_slurm_job_that_cannot_run_is_refused(
    nodes: Path, words: tuple[str, ...], changes: dict[str, str], line: str
) -> None:
    job = sbatch(nodes, *words, **changes)
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 2
    assert output.startswith(line)
    assert log(nodes) == []


def drivers(folder: Path, *scripts: str) -> "list[subprocess.Popen[bytes]]":
    """Python processes whose scripts have these names; on SIGTERM they take their time and end well."""
    body = """if True:
        import signal, sys, time
        signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(7)))
        print(flush=True)
        time.sleep(60)"""
    started = []
    for words in scripts:
        name, *rest = words.split()
        (folder / name).write_text(body)
        started.append(subprocess.Popen([sys.executable, str(folder / name), *rest], stdout=subprocess.PIPE))
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    return started


def proc(folder: Path, processes: "list[subprocess.Popen[bytes]]") -> dict[str, str]:
    """Only these, so that runs of others on this machine are left alone."""
    own = folder / "proc"
    own.mkdir()
    for process in processes:
        (own / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    return {"METAGRAD_PROC": str(own)}


def test_draining_waits_for_the_checkpoints_of_training_runs_alone(tmp_path: Path) -> None:
    processes = drivers(
        tmp_path, "metagrad train demo", "metagrad eval run", "other train", "metagrad-continue run demo"
    )
    try:
        environment = dict(os.environ) | proc(tmp_path, processes)
        done = subprocess.run([str(DRAIN), "20"], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert [process.poll() for process in processes] == [7, None, None, 7]
        _, _, asked = done.stderr.partition("asking ")
        assert {int(x) for x in asked.split(" to ")[0].split()} == {processes[0].pid, processes[3].pid}
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_draining_gives_up_in_time_and_says_so(tmp_path: Path) -> None:
    (process,) = drivers(tmp_path, "metagrad train demo")
    try:
        process.send_signal(signal.SIGSTOP)
        environment = dict(os.environ) | proc(tmp_path, [process])
        done = subprocess.run([str(DRAIN), "1"], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert f"still running: {process.pid}; what they have is their last regular checkpoint" in done.stderr
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
