"""Against an HTTP server that answers as a Ray dashboard does, or otherwise; tests/integration has a real one."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from metagrad.cluster.jobs import client as job_client
from metagrad.cluster.jobs.client import Address, JobClient, LogInterrupted, Submission, resolve_address
from metagrad.cluster.on_ray import private as ray_private
from metagrad.errors import ConfigurationError

Answer = tuple[int, str]
Dashboard = Callable[..., Address]
VERSION = json.dumps({"version": "4", "ray_version": ray.__version__})
JOB = {
    "type": "SUBMISSION",
    "submission_id": "mine",
    "status": "RUNNING",
    "entrypoint": "metagrad train demo",
    "start_time": 1_500,
    "metadata": {"a": "b"},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address, no proxy, no token."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    """answers by "METHOD path" -> address of a server; the bodies it got are `received`."""
    servers = []

    def serve(answers: dict[str, Answer], received: list[tuple[str, bytes]] | None = None) -> Address:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if received is not None:
                    received.append((f"{self.command} {self.path}", content))
                status, text = answers.get(f"{self.command} {self.path}", answers.get("*", (404, "404: Not Found")))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return Address(f"http://127.0.0.1:{server.server_port}", "address")

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def ray_dashboard(dashboard: Dashboard, received: list[tuple[str, bytes]] | None = None, **more: Answer) -> JobClient:
    return JobClient(dashboard({"GET /api/version": (200, VERSION), **more}, received))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        call()
    (line,) = str(refused.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ("http://head:8265", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, ("http://head:8265", "address")),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a/", "RAY_ADDRESS": "b"}, ("http://a", "RAY_API_SERVER_ADDRESS")),
        (None, {"RAY_ADDRESS": "https://b/ray"}, ("https://b/ray", "RAY_ADDRESS")),
    ],
)  # fmt: skip
def test_what_was_given_wins_over_the_environment(
    given: str | None, variables: dict[str, str], expected: tuple[str, str]
) -> None:
    assert tuple(resolve_address(given, variables)) == expected


@pytest.mark.parametrize(
    ("given", "variables", "line"),
    [
        (None, {}, "address = None: no cluster is named; "),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "RAY_ADDRESS = '10.0.0.1:6379': is not the http address of a Ray "),
        ("ray://head:10001", {}, "address = 'ray://head:10001': is not the http address of a Ray dashboard; "),
        ("http://", {}, "address = 'http://': is not the http address of a Ray dashboard; "),
        ("http://head:123456", {}, "address = 'http://head:123456': is not an address; "),
        ("http://user:secret@head:1", {}, "address = 'http://***@head:1': holds credentials, "),
        ("http://user:secret@head:123456", {}, "address = 'http://***@head:123456': is not an address; "),
        ("http://head:1/?token=secret", {}, "address = 'http://head:1/?***': holds credentials, "),
        ("http://head:1#secret", {}, "address = 'http://head:1?***': holds credentials, "),
        ("http://head:x/?token=secret", {}, "address = 'http://head:x/?***': is not an address; "),
        ("user:secret@head:1", {}, "address = '***@head:1': holds credentials, "),
        (None, {"RAY_ADDRESS": "user:secret@head:1"}, "RAY_ADDRESS = '***@head:1': holds credentials, "),
        (None, {"RAY_API_SERVER_ADDRESS": "http://head:1?secret"}, "RAY_API_SERVER_ADDRESS = 'http://head:1?***': "),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_no_secret_shown(
    given: str | None, variables: dict[str, str], line: str
) -> None:
    refused = refusal(lambda: resolve_address(given, variables))
    assert refused.startswith(line)
    assert "secret" not in refused


def test_an_address_where_nothing_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    line = refusal(lambda: JobClient(Address(url, "RAY_ADDRESS")))
    assert line.startswith(f"RAY_ADDRESS = '{url}': nothing answers there; start the cluster")
    monkeypatch.setattr(ray_private, "_SECONDS_TO_GREET", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        assert "nothing answers there in time; " in refusal(lambda: JobClient(Address(url, "address")))
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "answer",
    [(404, "404: Not Found"), (200, "<html>"), (200, "{}"), (200, "[1]"), (500, "oops"), (200, '{"ray_version": "x"}')],
)
def test_an_address_that_is_no_dashboard_is_refused(dashboard: Dashboard, answer: Answer) -> None:
    assert "is not a Ray dashboard" in refusal(lambda: JobClient(dashboard({"*": answer})))


def test_a_token_that_is_missing_or_wrong_is_refused_and_not_shown(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = dashboard({"*": (401, "Unauthorized: Missing authentication token")})
    assert "the cluster asks for a token, and none is sent; set RAY_AUTH_MODE=token" in refusal(
        lambda: JobClient(missing)
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert refusal(lambda: JobClient(missing)).startswith("RAY_AUTH_MODE = 'token': there is no token here; put ")
    wrong = dashboard({"*": (403, "Forbidden: Invalid authentication token abc")})
    line = refusal(lambda: JobClient(wrong))
    assert "the cluster refuses the token that is used here; " in line
    assert "abc" not in line


def test_a_cluster_of_another_version_takes_no_new_jobs(dashboard: Dashboard) -> None:
    ray_dashboard(dashboard).require_version()
    other = dashboard({"GET /api/version": (200, json.dumps({"version": "4", "ray_version": "2.9.3"}))})
    line = refusal(JobClient(other).require_version)
    assert f"runs Ray 2.9.3, and {ray.__version__} is installed here; install ray==2.9.3 here, or" in line


def test_the_environment_is_left_as_it_was(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("http://127.0.0.1:1", None):
        if before:
            monkeypatch.setenv("RAY_API_SERVER_ADDRESS", before)
        else:
            monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
        ray_dashboard(dashboard)
        assert job_client.os.environ.get("RAY_API_SERVER_ADDRESS") == before


def test_a_job_is_described(dashboard: Dashboard) -> None:
    jobs = [JOB, {**JOB, "submission_id": "first", "start_time": 1}, {**JOB, "type": "DRIVER", "submission_id": None}]
    client = ray_dashboard(
        dashboard,
        **{
            "GET /api/jobs/mine": (200, json.dumps(JOB)),
            "GET /api/jobs/": (200, json.dumps(jobs)),
            "GET /api/jobs/mine/logs": (200, json.dumps({"logs": "hello\n"})),
            "GET /api/jobs/none": (404, "Job none does not exist"),
        },
    )
    job = client.job("mine")
    assert (job.job_id, job.state, job.started, job.metadata, job.is_over) == (
        "mine",
        "RUNNING",
        1.5,
        {"a": "b"},
        False,
    )
    assert [each.job_id for each in client.jobs()] == ["first", "mine"]
    assert client.log("mine") == "hello\n"
    assert client.find("none") is None
    assert refusal(lambda: client.stop("mine")).endswith(
        "is not a Ray dashboard with jobs; name the dashboard of the cluster's head"
    )
    assert (
        refusal(lambda: client.job("none")) == "job = 'none': is not a job of this cluster; metagrad status lists them"
    )


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((400, "Traceback\nValueError: Job with submission_id mine already exists."), "submission-id = 'mine': is"),
        ((500, "Traceback\n  File\nOSError: disk full"), "the cluster cannot do that (OSError: disk full); see"),
        ((500, "No available agent to submit job, please try again."), "the cluster cannot do that (No available"),
    ],
)  # fmt: skip
def test_a_job_is_submitted_or_refused(dashboard: Dashboard, tmp_path: Path, answer: Answer, line: str) -> None:
    archive = tmp_path / "job.zip"
    archive.write_bytes(b"PK")
    submission = Submission(
        job_id="mine",
        entrypoint="exec metagrad train demo",
        archive=archive,
        runtime_env={"env_vars": {"A": "b"}},
        metadata={"c": "d"},
        num_cpus=0.0,
        num_gpus=0.5,
    )
    received: list[tuple[str, bytes]] = []
    routes = {"*": (200, "{}"), "POST /api/jobs/": (200, json.dumps({"job_id": "mine", "submission_id": "mine"}))}
    ray_dashboard(dashboard, received, **routes).submit(submission)
    sent = json.loads(dict(received)["POST /api/jobs/"])
    assert (sent["submission_id"], sent["entrypoint"], sent["metadata"]) == ("mine", submission.entrypoint, {"c": "d"})
    assert sent["runtime_env"]["env_vars"] == {"A": "b"}
    assert sent["runtime_env"]["working_dir"].startswith("gcs://")
    assert sent["entrypoint_num_gpus"] == 0.5
    assert "entrypoint_num_cpus" not in sent, "0 would let the command leave the head node"
    refused = ray_dashboard(dashboard, **{**routes, "POST /api/jobs/": answer})
    assert line in refusal(lambda: refused.submit(submission))


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's
def test_a_log_that_cannot_be_read_on_is_interrupted(dashboard: Dashboard) -> None:
    async def read() -> list[str]:
        return [text async for text in ray_dashboard(dashboard).stream("mine")]

    with pytest.raises(LogInterrupted):
        asyncio.run(read())
