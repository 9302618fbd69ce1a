import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from metagrad.cluster.run.stop import (
    ASKING,
    StoppedBySignal,
    StopRequest,
    children_left_alone,
    ignore_signals,
    sigterm_kept,
    stopped_at_once,
)

pytestmark = pytest.mark.usefixtures("signal_handlers_put_back")


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_is_a_wish(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # SIGTERM never does
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGTERM"


def test_the_handlers_before_it_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def fail() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) not in before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_was_ignored_from_the_start_stays_ignored() -> None:
    """As under nohup; a shell's background jobs ignore SIGINT too, and there it is asked for all the same."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_name is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_was_heard_before_a_run_began_stops_it() -> None:
    with StopRequest() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as inner:
            assert inner.signal_name == "SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert outer.signal_name == "SIGTERM"
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert (inner.signal_name, outer.signal_name) == ("SIGUSR1", None)
        os.kill(os.getpid(), signal.SIGTERM)  # after the run, and before its process has ended
        assert outer.signal_name == "SIGTERM"


def test_a_signal_in_the_last_moment_changes_nothing() -> None:
    ignore_signals()
    for number in ASKING:
        os.kill(os.getpid(), number)


def test_children_hear_of_sigterm_alone_and_this_process_of_all() -> None:
    program = "import signal; print(*sorted(int(x) for x in signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    with StopRequest() as stop:
        with children_left_alone():
            os.kill(os.getpid(), signal.SIGUSR1)
            child = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
        assert stop.signal_name == "SIGUSR1"
    assert {int(x) for x in child.stdout.split()} == set(ASKING) - {signal.SIGTERM}


def test_a_library_cannot_take_sigterm_over() -> None:
    with StopRequest() as stop:
        with sigterm_kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            assert stop.signal_name is None
        assert stop.signal_name == "SIGTERM"


@pytest.mark.parametrize("number", ASKING)
def test_work_that_holds_nothing_ends_where_it_is(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in ASKING}

    def work() -> None:
        with stopped_at_once():
            os.kill(os.getpid(), number)
            time.sleep(60)

    with pytest.raises(StoppedBySignal, match=f"^{number.name}$") as stopped:
        work()
    assert stopped.value.exit_code == 128 + number
    assert {each: signal.getsignal(each) for each in ASKING} == before
