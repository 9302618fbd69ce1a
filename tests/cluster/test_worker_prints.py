from typing import Any

import pytest

from metagrad.cluster.on_ray.worker_prints import LINES_OF_A_PROCESS, WorkerPrints


def batch(*lines: str, **more: Any) -> dict[str, Any]:
    """As Ray's log monitor sends it."""
    here = {"ip": "10.0.0.1", "localhost": "10.0.0.1"}
    return (
        {"lines": list(lines), "pid": 77, "is_err": False, "actor_name": "RolloutActor", "task_name": None}
        | here
        | more
    )


def test_prints_are_shown_with_the_process_that_printed_them(capsys: pytest.CaptureFixture[str]) -> None:
    prints = WorkerPrints("/logs")
    prints(batch("hello"))
    prints(batch("oh", is_err=True, ip="10.0.0.2"), ignore_prefix=False)
    prints(batch("part", actor_name=None, task_name="_execute_on_worker"))
    out, err = capsys.readouterr()
    assert out == "(RolloutActor, process 77) hello\n(_execute_on_worker, process 77) part\n"
    assert err == "(RolloutActor, process 77 on 10.0.0.2) oh\n"


def test_so_many_lines_of_a_process_are_shown_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    prints = WorkerPrints("/logs")
    for _ in range(3):
        prints(batch(*"x" * (LINES_OF_A_PROCESS - 50)))
    prints(batch("of another", pid=78))
    shown = capsys.readouterr().out.splitlines()
    assert shown.count("(RolloutActor, process 77) x") == LINES_OF_A_PROCESS
    assert sum("prints more than" in line for line in shown) == 1
    assert shown[LINES_OF_A_PROCESS].endswith("in /logs/worker-*-77.out and .err there")
    assert shown[-1] == "(RolloutActor, process 78) of another"


def test_of_ray_itself_only_what_it_pushes_is_shown_and_no_obituary(capsys: pytest.CaptureFixture[str]) -> None:
    prints = WorkerPrints("/logs")
    pushed = {"pid": "raylet", "is_err": True}
    prints(pushed | {"lines": ["A node is out of memory."]})
    prints(pushed | {"lines": ["A worker died or was killed while executing a task by an unexpected system error."]})
    prints(pushed | {"lines": ["Raylet is terminated. Termination is unexpected.", "    [state-dump] …"]})
    prints(batch("a row of statistics", pid="autoscaler"))
    prints(batch("a line of its log", pid="raylet"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "(Ray) A node is out of memory.\n")
