"""The shell scripts with what they call replaced."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DRAIN = ROOT / "docker" / "drain.sh"
SLURM = ROOT / "deploy" / "slurm" / "metagrad.sh"


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
    # Real steps wait for each other unless they say --overlap, and a task has one CPU unless it asks for more.
    program(
        fakes,
        "srun",
        """
        all="$*"
        while [[ "$1" == --* ]]; do shift; done
        [[ "$all" == *--overlap* ]] || sleep 60
        [[ "$all" == *--cpus-per-task=4* ]] || exit 9
        exec "$@\"""",
    )
    metagrad = tmp_path / "submitted" / ".venv" / "bin"
    program(
        metagrad,
        "ray",
        f"""
        if [ "$1" = status ]; then  # as real nodes, these are there a while after they were asked for
            until [ "$({shutil.which("grep")} -c "^ray start" "{log}")" -ge 2 ]; do sleep 0.05; done
            printf " 1 node_x\\n 1 node_y\\n"; exit
        fi
        mkdir -p "{tmp_path / "ray"}"
        echo "process $PPID" >> "{log}"
        sleep 60 & trap 'echo "ended $2" >> "{log}"; kill $!; exit' TERM; echo "ray $*" >> "{log}"; wait""",
    )
    program(metagrad, "python", "echo 10.0.0.7")
    program(
        metagrad,
        "metagrad-continue",
        f"""
        echo "process $$" >> "{log}"
        echo "run $RAY_ADDRESS $RAY_AUTH_MODE $*" >> "{log}"
        [ "$2" != broken ] || exit 3
        [ "$2" != short ] || exit 0
        [ "$2" != deaf ] || exec sleep 60  # as Python before it has its handlers
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
    script = nodes / "metagrad.sh"
    script.write_text(SLURM.read_text().replace("folder=/tmp/ray-$SLURM_JOB_ID", f"folder={nodes / 'ray'}"))
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
    end = time.monotonic() + 100
    while not any(line.startswith(start) for line in log(nodes)):
        assert time.monotonic() < end, log(nodes)
        time.sleep(0.02)


def test_a_slurm_job_makes_a_cluster_and_ends_as_its_run(nodes: Path) -> None:
    job = sbatch(nodes, "/runs/a", "short")
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 0, output
    lines = log(nodes)
    (head,) = [line for line in lines if line.startswith("ray start --head")]
    for option in (
        "--node-ip-address=10.0.0.7 --port=20246 --ray-client-server-port=20247",
        "--include-dashboard=false",
    ):
        assert option in head
    (worker,) = [line for line in lines if line.startswith("ray start --address")]
    assert worker.startswith("ray start --address=10.0.0.7:20246 ")
    for line in (head, worker):
        assert line.endswith(f" --num-cpus=4 --temp-dir={nodes / 'ray'} --block")
    assert not (nodes / "ray").exists()
    assert (nodes / "submitted" / "deploy").exists() is False  # what pip installs is all that it needs
    assert "run 10.0.0.7:20246 token /runs/a short" in lines
    assert lines.count("ended --head") + sum(line.startswith("ended --address") for line in lines) == 2
    (nodes / "log").unlink()
    job = sbatch(nodes, "/runs/a", "broken")
    job.communicate(timeout=100)
    assert job.returncode == 3
    assert (nodes / "ray").is_dir()  # with the logs


@pytest.mark.parametrize(("experiment", "is_told"), [("demo", True), ("deaf", False)])
def test_a_slurm_job_whose_time_is_up_queues_again(nodes: Path, experiment: str, is_told: bool) -> None:
    """`is_told`: the run hears it and writes a checkpoint; the signal ends a Python that still starts."""
    job = sbatch(nodes, "/runs/a", experiment, "--seed", "1")
    wait_for(nodes, "run ")
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == (75 if is_told else 143), output
    lines = log(nodes)
    assert lines.index("ended --head") < lines.index("scontrol requeue 123")
    assert lines.index("checkpoint") < lines.index("ended --head") if is_told else "checkpoint" not in lines
    assert not (nodes / "ray").exists()


@pytest.mark.parametrize(("number", "code", "requeues"), [(signal.SIGUSR1, 75, True), (signal.SIGTERM, 0, False)])
def test_a_slurm_job_is_told_before_its_cluster_is_there(
    nodes: Path, number: signal.Signals, code: int, requeues: bool
) -> None:
    program(nodes / "fakes", "grep", "echo 1")  # of the two nodes, one never joins
    job = sbatch(nodes, "/runs/a", "demo")
    wait_for(nodes, "ray start")
    job.send_signal(number)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == code, output
    assert ("scontrol requeue 123" in log(nodes)) == requeues
    assert not any(line.startswith("run ") for line in log(nodes))


def test_a_slurm_job_that_cannot_be_queued_again_says_so(nodes: Path) -> None:
    program(nodes / "fakes", "scontrol", 'if [ "$1" = show ]; then printf "a\\nb\\n"; else exit 1; fi')
    job = sbatch(nodes, "/runs/a", "demo")
    wait_for(nodes, "run ")
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 75
    assert "metagrad: job 123 cannot be queued again; call the same sbatch anew" in output


@pytest.mark.parametrize("experiment", ["demo", "deaf"])
def test_a_slurm_job_that_is_stopped_is_no_failure(nodes: Path, experiment: str) -> None:
    job = sbatch(nodes, "/runs/a", experiment)
    wait_for(nodes, "run ")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 0
    assert "metagrad: stopped as asked; the same sbatch goes on" in output
    assert ("checkpoint" in log(nodes)) == (experiment == "demo")
    assert not any(line.startswith("scontrol") for line in log(nodes))


def test_the_nodes_of_a_cancelled_slurm_job_clean_up_by_themselves(nodes: Path) -> None:
    """Slurm sends SIGTERM to every process, and starts no further one that could remove anything."""
    job = sbatch(nodes, "/runs/a", "demo")
    wait_for(nodes, "run ")
    job.kill()
    for line in log(nodes):
        if line.startswith("process "):
            os.kill(int(line.split()[1]), signal.SIGTERM)
    job.communicate(timeout=100)
    wait_for(nodes, "ended --head")
    end = time.monotonic() + 100
    while (nodes / "ray").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_slurm_job_whose_head_does_not_start_is_refused_at_once(nodes: Path) -> None:
    program(nodes / "submitted" / ".venv" / "bin", "ray", 'echo "no port"; exit 1')
    job = sbatch(nodes, "/runs/a", "demo")
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 2
    assert "metagrad: Ray's head has ended on a" in output
    assert log(nodes) == []


def test_ports_of_a_slurm_job_are_none_of_rays_workers() -> None:
    """Ray refuses a head whose port lies among those of its workers (10002 to 19999)."""
    (line,) = [x for x in SLURM.read_text().splitlines() if x.startswith("port=")]
    shown = subprocess.run(
        ["bash", "-c", f"for SLURM_JOB_ID in 1 2999 5999 6000 123456; do {line.partition('#')[0]}; echo $port; done"],
        capture_output=True,
        text=True,
        check=True,
    )
    ports = [int(x) for x in shown.stdout.split()]
    assert len(ports) == 5
    assert all(20_000 <= port < 32_000 and port % 2 == 0 for port in ports)


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
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 2
    assert output.startswith(line)
    assert log(nodes) == []


SLOW = """if True:
    import signal, sys, time
    signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(7)))
    print(flush=True)
    time.sleep(60)"""


def drivers(folder: Path, *scripts: str) -> "list[subprocess.Popen[bytes]]":
    """Python processes whose scripts have these names; on SIGTERM they take their time and end well."""
    started = []
    for words in scripts:
        name, *rest = words.split()
        (folder / name).write_text(SLOW)
        started.append(subprocess.Popen([sys.executable, str(folder / name), *rest], stdout=subprocess.PIPE))
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    return started


def submitted(body: str) -> "subprocess.Popen[bytes]":
    """As `metagrad submit --install` begins a run."""
    code = f"import sys; 'from metagrad.cli.entry import main'; exec({body!r})"
    process = subprocess.Popen([sys.executable, "-c", code, "train", "demo"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


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
    processes.append(submitted(SLOW))
    try:
        environment = dict(os.environ) | proc(tmp_path, processes)
        done = subprocess.run([str(DRAIN), "20"], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert [process.poll() for process in processes] == [7, None, None, 7, 7]
        _, _, asked = done.stderr.partition("asking ")
        assert {int(x) for x in asked.split(" to ")[0].split()} == {processes[i].pid for i in (0, 3, 4)}
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
        done = subprocess.run([str(DRAIN), "1"], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 1
        assert f"still running: {process.pid}; what they have is their last regular checkpoint" in done.stderr
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("ends", ["by itself", "when told", "while draining"])
def test_a_node_drains_before_its_ray_is_told_to_stop(tmp_path: Path, ends: str) -> None:
    log = tmp_path / "log"
    early = f'kill -TERM $(cat "{tmp_path}/pid"); ' if ends == "while draining" else ""
    program(tmp_path, "metagrad-drain", f'{early}sleep 0.3; echo drained >> "{log}"; exit 1')
    started = f'echo $$ > "{tmp_path}/pid"; echo "ray $*" >> "{log}"'
    stopped = f"""trap 'echo "ended" >> "{log}"; kill $!; exit 4' TERM"""
    alone = f"{started}; exit 5"
    program(tmp_path, "ray", alone if ends == "by itself" else f"{stopped}; sleep 60 & {started}; wait")
    node = subprocess.Popen(
        [str(ROOT / "docker" / "ray_node.sh"), "--head", "--port=6379"],
        env=dict(os.environ) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    try:
        wait_for(tmp_path, "ray start")
        if ends != "by itself":
            node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=100) == (5 if ends == "by itself" else 4)
    finally:
        node.kill()
        node.wait()
    rest = {"by itself": [], "when told": ["drained", "ended"], "while draining": ["ended", "drained"]}[ends]
    assert log.read_text().splitlines() == ["ray start --block --head --port=6379", *rest]
