"""With a cluster that is a dictionary; tests/integration/test_submitted_jobs.py has a real one."""

import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metagrad.cli.commands.submit import experiment_words
from metagrad.cli.main import main
from metagrad.cluster.jobs import client as job_client
from metagrad.cluster.jobs.client import Address, JobView, Submission, UnknownJob
from metagrad.cluster.jobs.description import run_dir_of
from metagrad.cluster.jobs.entrypoint import entrypoint, runtime_env
from metagrad.errors import ConfigurationError

Capture = pytest.CaptureFixture[str]
URL = "http://head:8265"
DONE = "update 3/3\n3 updates, 36 real frames in 1 s\nrun folder: x\n"


class FakeCluster:
    """What `JobClient` does, in memory. A job is over when its log was followed, or some looks after a stop."""

    def __init__(self) -> None:
        self.views: dict[str, JobView] = {}
        self.logs: dict[str, str] = {}
        self.submissions: list[Submission] = []
        self.files: set[str] = set()
        self.end = "SUCCEEDED"
        self.exit_code: int | None = None
        self.looks_until_stopped = 2
        self.stopping: dict[str, int] = {}
        self.is_interrupted = False

    def __call__(self, address: Address) -> "FakeCluster":
        self.address = address
        return self

    def add(self, job_id: str, state: str = "RUNNING", log: str = DONE, **more: object) -> None:
        self.views[job_id] = JobView(job_id=job_id, state=state, **more)  # type: ignore[arg-type]
        self.logs[job_id] = log

    def finish(self, job_id: str, state: str) -> None:
        old = self.views[job_id]
        self.add(
            job_id, state, self.logs[job_id], metadata=old.metadata, entrypoint=old.entrypoint,
            message="Job ended.\nmore", exit_code=self.exit_code,
        )  # fmt: skip

    def require_version(self) -> None:
        pass

    def find(self, job_id: str) -> JobView | None:
        return self.views.get(job_id)

    def job(self, job_id: str) -> JobView:
        if job_id not in self.views:
            raise UnknownJob(f"job = {job_id!r}: is not a job of this cluster; metagrad status lists them")
        if job_id in self.stopping:
            self.stopping[job_id] -= 1
            if self.stopping[job_id] == 0:
                self.finish(job_id, "STOPPED")
        return self.views[job_id]

    def jobs(self) -> list[JobView]:
        return list(self.views.values())

    def log(self, job_id: str) -> str:
        self.job(job_id)
        return self.logs[job_id]

    def stop(self, job_id: str) -> None:
        self.stopping[job_id] = self.looks_until_stopped

    def submit(self, submission: Submission) -> None:
        self.submissions.append(submission)
        with zipfile.ZipFile(submission.archive) as opened:
            self.files = set(opened.namelist())
        self.add(submission.job_id, metadata=submission.metadata, entrypoint=submission.entrypoint)

    async def stream(self, job_id: str) -> AsyncIterator[str]:
        yield self.logs[job_id]
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.finish(job_id, self.end)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """An empty current directory, and no waiting."""
    fake = FakeCluster()
    monkeypatch.setattr(job_client, "JobClient", fake)
    monkeypatch.setattr("metagrad.cli.commands.stop._SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", URL)
    monkeypatch.chdir(tmp_path)
    return fake


def test_a_job_trains_with_the_experiments_words_and_keeps_its_run(cluster: FakeCluster, capsys: Capture) -> None:
    Path("mine.csv").touch()
    words = ("--updates", "3", "--meta.n=2", "--address", "http://other:1", "--seed", "7")
    assert main(("submit", "demo", *words)) == 0
    (submission,) = cluster.submissions
    job_id = submission.job_id
    assert re.fullmatch(r"demo-\d{8}-\d{6}-[0-9a-f]{6}", job_id)
    assert cluster.address == Address("http://other:1", "address")
    command = (
        f"cd folder && exec metagrad train demo --updates 3 --meta.n=2 --seed 7 --run-dir '~/metagrad-runs/{job_id}'"
    )
    assert submission.entrypoint == command
    assert submission.runtime_env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300", "METAGRAD_JOB_FOLDER": "folder"}}
    assert (submission.num_cpus, submission.num_gpus) == (0.0, 0.0)
    assert cluster.files == {"folder/", "folder/mine.csv"}
    assert capsys.readouterr().out.splitlines() == [
        f"submitted: {job_id}",
        f"run folder: ~/metagrad-runs/{job_id} (on the head node)",
        f"look at it: metagrad logs {job_id} --follow --address http://other:1",
        f"stop it:    metagrad stop {job_id} --address http://other:1",
    ]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ((), []),
        (("--follow", "--seed", "1", "--resume"), ["--seed", "1"]),
        (("--run-dir", "/a b", "--run_dir=/c", "--seed=1"), ["--seed=1"]),
        (("--install", "--packages", "s3fs", "gcsfs>=1", "--env.rewards", "0", "1"), ["--env.rewards", "0", "1"]),
        (("--stop-seconds", "9", "--entrypoint-num-cpus", "1", "--meta-parameters.lambda.is-learnt"),
         ["--meta-parameters.lambda.is-learnt"]),
    ],
)  # fmt: skip
def test_the_experiments_words_are_the_others(words: tuple[str, ...], kept: list[str]) -> None:
    assert experiment_words(words) == kept


def test_the_command_is_one_of_the_shell() -> None:
    words = ["train", "demo", "--env.game", "a;b $HOME", "--run-dir", "s3://bucket/my run", "--resume"]
    command = entrypoint(words, ["mine/toy one.py"], brings_metagrad=False, has_variables=False)
    expected = ["--import", "mine/toy one.py", *words]
    assert shlex.split(command) == ["cd", "folder", "&&", "exec", "metagrad", *expected]
    brought = shlex.split(entrypoint(words, [], brings_metagrad=True, has_variables=False))
    assert brought[:6] == ["cd", "folder", "&&", "exec", "python", "-P"]
    assert subprocess.run([sys.executable, *brought[5:8], "--version"], capture_output=True, check=True, cwd="/").stdout


def test_pip_is_asked_for_packages_only_where_they_are_to_be_installed() -> None:
    assert set(runtime_env(300)) == {"env_vars"}
    environment = runtime_env(60, packages=("s3fs==2026.9.0",))
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    assert "s3fs==2026.9.0" in environment["pip"]["packages"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--submission-id", "a/b"), r"submission-id = 'a/b': must be letters, .*; choose another one"),
        (("--submission-id", "taken"), r"submission-id = 'taken': is the id of another job of this cluster; choo"),
        (("--run-dir", "runs/1"), r"run-dir = 'runs/1': would lie in the job's working folder, .*; use an absolute"),
        (("--run-dir", "s3://key:secret@bucket/x"), r"run-dir = 's3://\*\*\*@bucket/x': holds credentials, .*; "),
        (("--resume",), r"run-dir = None: --resume needs the folder to continue; add --run-dir DIR"),
        (("--stop-seconds", "0"), r"stop-seconds = 0: must lie in \[1, 86400\]; "),
        (("--entrypoint-num-gpus", "-1"), r"entrypoint-num-gpus = -1.0: must be 0 or more; "),
        (("--entrypoint-num-cpus", "nan"), r"entrypoint-num-cpus = nan: must be 0 or more; "),
        (("--packages", "s3fs"), r"packages = \['s3fs'\]: are for pip, which needs --install; add it"),
        (("--working-dir", "none"), r"working-dir = 'none': is not a folder; "),
        (("--address", "head:8265"), r"address = 'head:8265': is not the http address of a Ray dashboard; "),
        (("--actors", "0"), r"actors = 0: "),
        (("--meta.nn", "3"), r"meta.nn = '3': is not an option of this command; did you mean --meta.n\?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_anything_is_sent(
    cluster: FakeCluster, capsys: Capture, words: tuple[str, ...], line: str
) -> None:
    cluster.add("taken")
    assert main(("submit", "demo", *words)) == 2
    output = capsys.readouterr()
    assert re.match(f"metagrad: {line}", output.err), output.err
    assert len(output.err.splitlines()) == 1
    assert "secret" not in output.err
    assert cluster.submissions == []


def test_a_cluster_of_another_version_is_sent_nothing(
    cluster: FakeCluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ConfigurationError("address = 'http://head:8265': runs Ray 2.9.3; install it here")

    monkeypatch.setattr(cluster, "require_version", refuse)
    assert main(("submit", "demo")) == 2
    assert capsys.readouterr().err.startswith("metagrad: address = ")
    assert cluster.submissions == []


def test_environments_that_cannot_be_made_are_found_out_here(
    cluster: FakeCluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(_env: object) -> object:
        raise ConfigurationError("env.backend = 'ale': is not installed; use envpool")

    monkeypatch.setattr("metagrad.cli.commands.submit.probe", probe)
    assert main(("submit", "demo")) == 2
    assert capsys.readouterr().err == "metagrad: env.backend = 'ale': is not installed; use envpool\n"
    assert cluster.submissions == []


@pytest.mark.parametrize(
    ("end", "exit_code", "code", "line"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("STOPPED", None, 143, "metagrad: job one was stopped\n"),
        ("FAILED", 2, 2, "metagrad: job one failed: Job ended.\n"),
        ("FAILED", -9, 137, "metagrad: job one failed: Job ended.\n"),
        ("FAILED", None, 1, "metagrad: job one failed: Job ended.\n"),
    ],
)
def test_who_follows_ends_as_the_job_does(
    cluster: FakeCluster, capsys: Capture, end: str, exit_code: int | None, code: int, line: str
) -> None:
    cluster.end, cluster.exit_code = end, exit_code
    assert main(("submit", "demo", "--submission-id", "one", "--follow")) == code
    output = capsys.readouterr()
    assert output.out.endswith(DONE)
    assert output.err == line
    assert main(("logs", "one")) == 0
    assert capsys.readouterr().out == DONE


def test_ctrl_c_while_following_leaves_the_job_running(cluster: FakeCluster, capsys: Capture) -> None:
    cluster.add("one")
    cluster.is_interrupted = True
    assert main(("logs", "one", "--follow", "--address", URL)) == 130
    assert cluster.stopping == {}
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"one keeps running; follow it again with metagrad logs one --follow --address {URL}, "
        f"end it with metagrad stop one --address {URL}"
    )


def test_a_job_is_stopped_with_its_checkpoint_and_says_how_to_continue(cluster: FakeCluster, capsys: Capture) -> None:
    assert main(("submit", "demo", "--submission-id", "one", "--stop-seconds", "60")) == 0
    capsys.readouterr()
    assert main(("stop", "one", "--address", URL)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one: asked to stop; it has 60 s for its last update and its checkpoint",
        "3 updates, 36 real frames in 1 s",
        "run folder: ~/metagrad-runs/one",
        f"continue it: metagrad submit demo --resume --run-dir '~/metagrad-runs/one' --stop-seconds 60 --address {URL}",
    ]
    assert main(("stop", "one")) == 0
    assert capsys.readouterr().out == "one has already ended (STOPPED)\n"


def test_a_stop_that_kept_nothing_or_does_not_end_says_so(
    cluster: FakeCluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add("killed", log="update 1/3\n")
    assert main(("stop", "killed")) == 1
    output = capsys.readouterr()
    assert "it has 3 s for" in output.out
    assert output.err.splitlines()[-1] == "update 1/3"
    assert "job killed is STOPPED, without a last checkpoint" in output.err
    cluster.add("waiting", "PENDING", "")
    cluster.looks_until_stopped = 10**9
    monkeypatch.setattr("metagrad.cli.commands.stop._SECONDS_TO_NOTICE", -3.0)
    assert main(("stop", "waiting")) == 1
    assert capsys.readouterr().err == "metagrad: job waiting is still PENDING; it ends as soon as it can\n"


def test_status_shows_training_jobs_whoever_submitted_them(cluster: FakeCluster, capsys: Capture) -> None:
    assert main(("status",)) == 0
    assert capsys.readouterr().out == "no training jobs on this cluster\n"
    cluster.add("other", entrypoint="python train.py")
    cluster.add(
        "plain", entrypoint="/x/bin/metagrad train atari --run-dir /data/1", log="update 5/9  lag 0\n", started=0.0
    )
    assert main(("submit", "demo", "--submission-id", "ours")) == 0
    cluster.finish("ours", "FAILED")
    capsys.readouterr()
    assert main(("status",)) == 0
    header, plain, ours = capsys.readouterr().out.splitlines()
    assert header.split() == ["job", "experiment", "state", "started", "run", "folder", "last", "line"]
    assert re.fullmatch(r"plain  atari +RUNNING +19\d\d-\S+ \S+  /data/1 +update 5/9  lag 0", plain)
    assert re.fullmatch(r"ours +demo +FAILED +~/metagrad-runs/ours", ours)
    assert main(("status", "ours")) == 0
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (rows["state"], rows["run folder"], rows["message"]) == ("FAILED", "~/metagrad-runs/ours", "Job ended.")
    assert rows["last line"] == "run folder: x"
    for command in ("status", "logs", "stop"):
        assert main((command, "none")) == 2
        assert (
            capsys.readouterr().err
            == "metagrad: job = 'none': is not a job of this cluster; metagrad status lists them\n"
        )


def test_a_log_that_went_with_its_node_has_no_last_line(cluster: FakeCluster, capsys: Capture) -> None:
    cluster.add("one", entrypoint="metagrad train demo")

    def gone(_job_id: str) -> str:
        raise ConfigurationError("its node is gone")

    cluster.log = gone  # type: ignore[method-assign]
    assert main(("status",)) == 0
    assert capsys.readouterr().out.splitlines()[-1].rstrip().endswith("RUNNING")


def test_variables_travel_in_the_jobs_files_and_their_values_are_shown_nowhere(
    cluster: FakeCluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "hidden one")
    words = ("--job-env", "TOKEN=hidden=it's", "--job-env=FROM_HERE", "--seed", "1", "--submission-id", "one")
    assert main(("submit", "demo", *words)) == 0
    (submission,) = cluster.submissions
    assert submission.entrypoint.startswith(". ./variables.sh && cd folder && exec metagrad train demo --seed 1 --run")
    assert submission.runtime_env["env_vars"]["METAGRAD_JOB_VARIABLES"] == "TOKEN FROM_HERE"
    assert "variables.sh" in cluster.files
    assert main(("stop", "one")) == 0
    shown = capsys.readouterr()
    assert "--job-env TOKEN --job-env FROM_HERE" in shown.out
    seen = (shown.out, shown.err, submission.entrypoint, submission.runtime_env, submission.metadata)
    assert not any("hidden" in str(each) for each in seen)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--job-env", "hidden"), "job-env = 'hidden': has no value here; use --job-env hidden=VALUE, or set .*"),
        (("--job-env", "A-B=hidden"), "job-env = 'A-B=…': is not NAME=VALUE .*"),
        (("--job-env", "=hidden"), "job-env = '=…': is not NAME=VALUE .*"),
        (("--job-env", "A=hidden", "--job-env", "A=hidden"), "job-env = 'A=…': is given twice; give it once"),
        (("--job-env", "A=hidden\0"), "job-env = 'A=…': contains a null byte; remove it"),
        (("--job-enf", "A=hidden"), "job-enf = 'A=…': is not an option of this command; did you mean --job-env.*"),
        (("--job-env", "A=1", "B=hidden"), "'B=…': does not belong to any option; see metagrad submit demo --help"),
    ],
)
def test_a_variable_that_is_refused_shows_no_value(
    cluster: FakeCluster, capsys: Capture, words: tuple[str, ...], line: str
) -> None:
    assert main(("submit", "demo", *words)) == 2
    refusal = capsys.readouterr().err
    assert re.fullmatch(f"metagrad: {line}\n", refusal), refusal
    assert "=hidden" not in refusal
    assert cluster.submissions == []


def test_what_stays_here_is_counted_and_named(cluster: FakeCluster, capsys: Capture) -> None:
    for number in range(9):
        Path(f"key{number}.pem").touch()
    assert main(("submit", "demo")) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out:")]
    names = ", ".join(f"key{number}.pem" for number in range(6))
    assert line == f"left out:   9 of . (secrets, virtual environments, links out of the folder): {names}, …"
    assert cluster.files == {"folder/"}


def test_words_of_others_reach_no_terminal_and_no_shell(cluster: FakeCluster, capsys: Capture) -> None:
    """A job's metadata is written by whoever may submit jobs."""
    evil = "\x1b]52;c;eA==\x07\n; rm -rf ~"
    words = {"metagrad_experiment": evil, "metagrad_run_dir": evil, "metagrad_stop_seconds": evil}
    for job_id, continued in (
        ("one", '["submit", "demo", "--run-dir", "; rm -rf ~"]'),
        ("two", "rm -rf ~"),
        ("x;y", "[1]"),
    ):
        cluster.add(job_id, log=f"{evil}\n{DONE}", metadata=words | {"metagrad_continue": continued}, message=evil)
    for command in (("status",), ("status", "one"), ("logs", "one"), ("stop", "one"), ("stop", "two"), ("stop", "x;y")):
        assert main(command) == 0
        output = capsys.readouterr()
        for line in (*output.out.split("\n"), *output.err.split("\n")):
            assert line.isprintable(), line
        continued = [line for line in output.out.splitlines() if line.startswith("continue it: ")]
        assert continued == (
            ["continue it: metagrad submit demo --run-dir '; rm -rf ~'"]
            if command[-1] == "one" and command[0] == "stop"
            else []
        )
    cluster.is_interrupted = True
    cluster.add("x;y")
    assert main(("logs", "x;y", "--follow", "--address", "http://h:1/$(id)")) == 130
    assert "metagrad stop 'x;y' --address 'http://h:1/$(id)'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metagrad train demo --run-dir '/data/my run'", "/data/my run"),
        ("metagrad train demo --run-dir=/data/1 --seed 1", "/data/1"),
        ('cd x && metagrad train demo --run_dir "/a b" --run-dir /c\\ d', "/c d"),
        ("metagrad train demo --run-dir", ""),
        ("metagrad train demo --run-dir /a 'torn", "/a"),
        ("metagrad train demo", ""),
    ],
)
def test_a_run_folder_is_read_off_a_shells_line(line: str, expected: str) -> None:
    assert run_dir_of(JobView(job_id="one", state="RUNNING", entrypoint=line)) == expected
