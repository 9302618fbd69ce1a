"""What every test runs under: checked signatures, one thread, no telemetry, repeatable properties."""

import functools
import importlib.util
import math
import multiprocessing
import os
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import beartype
import hypothesis
import jaxtyping
import pytest
import torch
import torch.distributed as dist
import typing_extensions

# Processes that a test starts inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A shell starts what is to run in the background deaf to these, and nohup to SIGHUP; runs under test have to hear them.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# Two threads on a machine that does something else are many times slower than one.
torch.set_num_threads(1)

# No time limit on one example (pytest-timeout holds for the whole test) and the same examples in every run.
for name, examples in (("fast", 20), ("all", 200)):
    hypothesis.settings.register_profile(name, deadline=None, derandomize=True, print_blob=True, max_examples=examples)
hypothesis.settings.load_profile("fast")

EXAMPLES = Path(__file__).parent.parent / "examples"

F = TypeVar("F", bound=Callable[..., object])


CHECKS: dict[tuple[str, ...], Callable[..., object]] = {}


class CallsToCheck:
    """Counts the calls that a test has checked, and switches checks off at a limit: by then a loop repeats itself."""

    limit, seen = math.inf, 0

    def count(self) -> None:
        self.seen += 1
        if self.seen > self.limit:
            jaxtyping.config.update("jaxtyping_disable", True)

    def restart(self) -> None:
        self.seen = 0
        jaxtyping.config.update("jaxtyping_disable", False)


CALLS = CallsToCheck()


def checked(function: F) -> F:
    """beartype, for which an int is a float (as for mypy) and every protocol in a signature can be checked.

    jaxtyping hands over a function that has the signature and an empty body. A function within another is defined anew
    at each call of that one, and to compile its check each time took a quarter of the losses' tests: it is kept.
    """
    key = (function.__module__, function.__qualname__, *map(repr, function.__annotations__.items()))
    if "<locals>" in function.__qualname__ and key in CHECKS:
        return typing.cast("F", CHECKS[key])
    for annotation in function.__annotations__.values():
        for part in (annotation, *typing.get_args(annotation)):
            if isinstance(part, type) and typing_extensions.is_protocol(part):
                typing.runtime_checkable(part)
    check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))(function)

    @functools.wraps(function)
    def counted(*arguments: object, **named: object) -> object:
        CALLS.count()
        return check(*arguments, **named)

    CHECKS[key] = counted
    return typing.cast("F", counted)


# Calls of functions of the library check types and shapes. Not typeguard 4: it cannot parse shape strings.
# The hook takes the checker as an expression, hence the detour.
LIBRARY = [f"metagrad.{path.stem}" for path in (Path(__file__).parent.parent / "metagrad").glob("*.py")]
CHECKED = [name for name in LIBRARY if name != "metagrad.__init__"] + ["metagrad.actors", "metagrad.learner"]
jaxtyping.install_import_hook(CHECKED, f"sys.modules[{__name__!r}].checked")


@pytest.fixture(scope="session")
def load_example() -> Callable[[str], ModuleType]:
    """Import examples by name, each once: a name can have one configuration type only."""

    @functools.cache
    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module  # dataclasses look their module up
        specification.loader.exec_module(module)
        return module

    return load


def pytest_configure(config: pytest.Config) -> None:
    """`make test-all` tries more examples of every property, and checks every call."""
    hypothesis.settings.load_profile("fast" if config.getoption("markexpr") else "all")
    CALLS.limit = 4_000 if config.getoption("markexpr") else math.inf


@pytest.fixture(autouse=True)
def _checks_of_its_own() -> None:
    CALLS.restart()


@pytest.hookimpl(tryfirst=True)  # before -m deselects what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Thin out what is marked so, then see to the GPU."""
    seen: dict[str, int] = {}
    for item in items:
        if (marker := item.get_closest_marker("thinned")) is not None:
            function = item.nodeid.partition("[")[0]
            seen[function] = seen.get(function, -1) + 1
            if seen[function] % marker.args[0]:
                item.add_marker(pytest.mark.slow)
    _skip_without_gpu(items)


def _skip_without_gpu(items: list[pytest.Item]) -> None:
    """Skip, and say so, what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def signal_handlers_put_back() -> Iterator[None]:
    from metagrad.cluster.run.stop import ASKING  # only now, since the import hook has to come first

    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _in_group(rank: int, size: int, folder: Path, work: Callable[[], Any]) -> None:
    """Work as one rank of a gloo group on loopback, and leave what comes of it in a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        torch.save(work(), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # nothing of pytest's is to run twice


@pytest.fixture
def in_group(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Callable[[], Any]], list[Any]]:
    """(size, work) -> what `work()` returns in each of so many forks of this process, a gloo group."""

    def run(size: int, work: Callable[[], Any]) -> list[Any]:
        folder = tmp_path_factory.mktemp("group")
        context = multiprocessing.get_context("fork")
        forks = [context.Process(target=_in_group, args=(rank, size, folder, work)) for rank in range(size)]
        for fork in forks:
            fork.start()
        for fork in forks:
            fork.join(300)
            if fork.is_alive():
                fork.kill()
        assert [fork.exitcode for fork in forks] == [0] * size
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return run
