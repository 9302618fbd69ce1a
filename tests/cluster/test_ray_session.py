"""Ray itself is replaced here; real sessions serve tests/cluster/test_ray_actors.py and tests/integration."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from metagrad.cluster.config import Experiment
from metagrad.cluster.ray_session import ray_session
from metagrad.cluster.supervise import demand
from metagrad.errors import ConfigurationError

Tiny = Callable[..., Experiment]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray was told; like Ray, its `init` would take SIGTERM over, twice."""
    recorded: list[Any] = []

    def init(**options: Any) -> None:
        recorded.append(options)
        ray_utils.set_sigterm_handler(signal.SIG_IGN)
        ray_worker.connect()
        assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "a node of ours hears of it"

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_worker, "connect", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "shutdown", lambda: recorded.append("shutdown"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    return recorded


def test_without_an_address_an_embedded_ray_has_the_cpus_that_actors_need(tiny: Tiny, calls: list[Any]) -> None:
    with ray_session(demand(tiny(actors=2, actor_threads=2))):
        (options,) = calls
        assert options["address"] == "local"
        assert options["num_cpus"] >= 5
        assert options["include_dashboard"] is False
    assert calls[1:] == ["shutdown"]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda _number, _frame: None])
def test_sigterm_stays_the_runs_own(tiny: Tiny, calls: list[Any], handler: Any) -> None:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with ray_session(demand(tiny())):
            assert signal.getsignal(signal.SIGTERM) is handler
            assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert calls
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_is_too_small_is_refused_and_left(tiny: Tiny, calls: list[Any]) -> None:
    message = (
        r"^actors = 4: with 2 threads each, and 1 CPUs for learner and evaluation, 9 CPUs are needed, and the cluster "
        r"has 8; use fewer actors or add nodes$"
    )
    with pytest.raises(ConfigurationError, match=message), ray_session(demand(tiny(actors=4, actor_threads=2))):
        pass
    assert calls[1:] == ["shutdown"]


def test_an_error_inside_leaves_ray(tiny: Tiny, calls: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="inside"), ray_session(demand(tiny())):
        raise RuntimeError("inside")
    assert calls[1:] == ["shutdown"]


def test_an_address_is_connected_to(tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with ray_session(demand(tiny())):
        (options,) = calls
        assert options["address"] == "auto"
        assert "num_cpus" not in options


def test_an_empty_address_is_none(tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    with ray_session(demand(tiny())):
        assert calls[0]["address"] == "local"


@pytest.mark.parametrize("error", [ConnectionError, ValueError])
def test_what_ray_refuses_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def init(**_: Any) -> None:
        raise error("not so")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "garbage")
    message = r"^RAY_ADDRESS = 'garbage': cannot be connected to \(not so\); start a cluster there"
    with pytest.raises(ConfigurationError, match=message), ray_session(demand(tiny())):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "a..b:80"])
def test_an_address_where_nothing_listens_is_refused(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigurationError, match="no Ray cluster answers there"), ray_session(demand(tiny())):
        pass
    assert calls == []


@pytest.mark.usefixtures("calls")
def test_rays_paragraph_on_a_dead_worker_is_not_printed_and_all_else_is(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is Ray's own function, by a name that only Ray's sources promise; what it is called with is theirs too."""

    def said(line: str) -> str:
        ray_worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        return capsys.readouterr().out

    dead = "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot …"
    with ray_session(demand(tiny())):
        assert said(dead) == ""
        assert "out of memory" in said("A node is out of memory.")
    assert dead in said(dead), "outside it is as it was"
