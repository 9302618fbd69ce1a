"""Ray itself is replaced here; real sessions serve tests/cluster/test_ray_actors.py and tests/integration."""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.exceptions import AuthenticationError

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.supervise import demand
from metagrad.cluster.on_ray import private as ray_private
from metagrad.cluster.on_ray import session as ray_session_module
from metagrad.cluster.on_ray.session import ray_session
from metagrad.errors import ConfigurationError

Tiny = Callable[..., Experiment]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what Ray was told; like Ray, its `init` would take SIGTERM over, twice."""
    recorded: list[Any] = []

    def init(**options: Any) -> None:
        recorded.append(options)
        ray_utils.set_sigterm_handler(signal.SIG_IGN)
        ray_worker.connect()
        assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "a node of ours hears of it"

    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_private, "endpoints", dict)
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
        r"^actors = 4: with 2 threads each, and 1 CPU for learner and evaluation, the run needs 9 CPUs, and the "
        r"cluster has 8; use fewer actors or add nodes$"
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
    monkeypatch.setattr(ray_session_module, "find_cluster", lambda _: None)
    with ray_session(demand(tiny())):
        (options,) = calls
        assert options["address"] == "auto"
        assert "num_cpus" not in options


@pytest.mark.parametrize("address", ["", "local"])
def test_an_empty_address_is_none(tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_session(demand(tiny())):
        assert calls[0]["address"] == "local"


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError, AuthenticationError])
def test_what_ray_refuses_is_refused_and_no_secret_shown(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def init(**_: Any) -> None:
        raise error("not at me:secret@h:6379")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_session_module, "find_cluster", lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "h:6379")
    message = r"^RAY_ADDRESS = 'h:6379': cannot be connected to \(not at \*\*\*@h:6379.*\); start a cluster there"
    with pytest.raises(ConfigurationError, match=message), ray_session(demand(tiny())):
        pass


def test_an_address_that_is_refused_is_not_connected_to(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigurationError, match="is for Ray's client"), ray_session(demand(tiny())):
        pass
    assert calls == []


def test_the_folder_and_the_token_of_an_embedded_ray_are_its_users_alone(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", (base := tempfile.mkdtemp(dir="/tmp", prefix="t")))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    with ray_session(demand(tiny())):
        folder = Path(calls[0]["_temp_dir"]).parent
        assert folder.parent == Path(base)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert token.parent == folder
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert len(token.read_text()) == 64
        assert "127.0.0.1" in os.environ["no_proxy"]
    assert dict(os.environ) == before
    assert os.listdir(base) == []
    assert os.listdir(tmp_path) == [], "Ray would write its token here, for everybody to read"
    os.rmdir(base)


@pytest.mark.parametrize(
    "chosen", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/mine"}]
)
def test_who_chooses_an_authentication_keeps_it(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    with ray_session(demand(tiny())):
        assert os.environ.get("RAY_AUTH_TOKEN_PATH") == chosen.get("RAY_AUTH_TOKEN_PATH")
        assert os.environ["RAY_AUTH_MODE"] == chosen.get("RAY_AUTH_MODE", "token")
    assert calls[1:] == ["shutdown"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("no raylet"),
        Exception("The current node timed out during startup. This\ncould happen"),
    ],
)
def test_a_computer_where_ray_does_not_start_is_told_in_one_line(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    message = (
        r"^topology = 'ray': Ray does not start here \(.*(space|raylet|startup).*\); see that .* has room, or name"
    )
    with pytest.raises(ConfigurationError, match=message), ray_session(demand(tiny())):
        pass
    assert calls == ["shutdown"]


@pytest.mark.parametrize(
    ("folder", "rule"),
    [("long" * 8, "Ray's sockets have no longer names than"), ("missing", "Ray needs a folder there (No such file")],
)
def test_a_temporary_folder_that_cannot_be_rays_is_refused(
    tiny: Tiny, calls: list[Any], monkeypatch: pytest.MonkeyPatch, folder: str, rule: str
) -> None:
    base = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    place = base / folder
    if folder != "missing":
        place.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    with pytest.raises(ConfigurationError) as refusal, ray_session(demand(tiny())):
        pass
    assert str(refusal.value).startswith(f"TMPDIR = '{place}': {rule}")
    assert calls == []
    shutil.rmtree(base)


@pytest.mark.usefixtures("calls")
def test_what_processes_print_comes_to_the_console_while_a_session_lasts(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is Ray's own function, by a name that only Ray's sources promise; what it is called with is theirs too."""
    before = ray_worker.print_to_stdstream
    with ray_session(demand(tiny())):
        ray_worker.print_to_stdstream({"lines": ["A node is out of memory."], "pid": "raylet", "is_err": False})
    assert capsys.readouterr().out == "(Ray) A node is out of memory.\n"
    assert ray_worker.print_to_stdstream is before
