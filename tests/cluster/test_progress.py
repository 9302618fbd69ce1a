from io import StringIO

import pytest
from rich.console import Console

from metagrad.cluster.run import progress as module
from metagrad.cluster.run.progress import Progress

ROW = {"frames_per_second": 1234.5, "return_mean": 1.5, "eta": {"gamma": 0.91234}, "lag": 0.0}


def text(console: Console) -> str:
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_a_file_gets_a_plain_line_now_and_then_and_always_the_last(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Progress(console, 50) as progress:
        for update, now in ((10, 100.0), (20, 101.0), (30, 109.9), (40, 110.1)):
            clock[0] = now
            progress.show(update, **ROW, is_last=False)
        progress.show(50, **ROW, is_last=True)
    lines = text(console).splitlines()
    assert [line.split()[1] for line in lines] == ["10/50", "40/50", "50/50"]
    assert lines[0] == "update 10/50  1,234 frames/s  return 1.50  gamma 0.9123  lag 0"


def test_before_the_first_episode_ends_there_is_no_return(console: Console) -> None:
    with Progress(console, 5) as progress:
        progress.show(1, **ROW | {"return_mean": None, "eta": {}}, is_last=False)
    assert "return -" in text(console)


def test_messages_stay_and_are_never_wrapped(console: Console) -> None:
    with Progress(console, 5) as progress:
        progress.say("x" * 300)
    assert text(console) == "x" * 300 + "\n"


@pytest.mark.parametrize("message", ["run folder: a[/b]c", "run folder: [bold]x:smile:", "[Errno 2] of [red]"])
def test_messages_are_no_markup(console: Console, message: str) -> None:
    with Progress(console, 5) as progress:
        progress.say(message)
    assert text(console) == message + "\n"


def test_a_terminal_gets_one_live_line_that_ends_with_an_error_too() -> None:
    console = Console(file=StringIO(), width=100, force_terminal=True)

    def fail() -> None:
        with Progress(console, 50) as progress:
            for update in range(1, 4):
                progress.show(update, **ROW, is_last=False)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert text(console).count("update 3/50") >= 1
    assert "\x1b[?25h" in text(console), "the cursor is shown again"


def test_a_terminal_is_told_what_is_waited_for() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=200)
    with Progress(console, 5) as progress:
        progress.begin("starting 2 actors")
    assert "starting 2 actors" in text(console)
