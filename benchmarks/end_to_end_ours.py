"""Makes one run of ours for `end_to_end`, in a session of its own, as the `metagrad` command would start it.

That command sets how OpenMP's threads wait before torch is loaded, and so does `ours`, which starts this.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.end_to_end_group import Window, answering, run_in_group, seconds_at_most
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import ScheduleName
from metagrad.cluster.launch import launch
from metagrad.cluster.run.plot import logged_scalars
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.precision import Precision

_SECONDS_BETWEEN_LOOKS = 0.05


def pong(n: int, schedule: ScheduleName, precision: Precision = "float32") -> Experiment:
    """Return `atari` with another n. In peek one actor has all games: it and the learner share two cores.

    At n = 0 a thread of each keeps them busy, and rollouts are as long as RLlib's: one screen in 21 is evaluated for
    its value alone, not one in 6. The look-ahead makes the learner the longer part by far: it has two threads.
    """
    base = replace(atari(), rollout_length=5 if n else 20)
    meta = replace(base.meta, n=n)
    changed = replace(base, schedule=schedule, meta=meta, learner_threads=2, precision=precision)
    if schedule == "lockstep":
        return changed
    return replace(changed, actors=1, environments_per_actor=64, learner_threads=2 if n else 1)


EXPERIMENTS = {
    "pong n=0 lockstep": lambda: pong(0, "lockstep"),
    "pong n=0 peek": lambda: pong(0, "peek"),
    "pong n=0 peek, bf16-mixed": lambda: pong(0, "peek", "bf16-mixed"),
    "pong n=3 lockstep": lambda: pong(3, "lockstep"),
    "pong n=3 peek": lambda: pong(3, "peek"),
    "pong n=3 peek, bf16-mixed": lambda: pong(3, "peek", "bf16-mixed"),
    "snake-6x6": snake_6x6,
}
SETTINGS = (
    *("schedule", "precision", "actors", "actor_threads", "environments", "environments_per_actor", "rollout_length"),
    *("learner_threads", "learner_cpus", "max_lag"),
)


def settings(experiment: Experiment) -> dict[str, Any]:
    """Return those settings of an experiment that bear on its speed."""
    assert set(SETTINGS) <= {field.name for field in fields(experiment)}
    return {name: getattr(experiment, name) for name in SETTINGS} | {"n": experiment.meta.n}


def _row_files(folder: Path) -> list[Path]:
    return list(folder.glob("events.out.*"))


def _rows(folder: Path) -> dict[str, np.ndarray]:
    return {name: values for name, (_, values) in logged_scalars(folder).items()}


def _rates(folder: Path) -> np.ndarray:
    return _rows(folder).get("throughput/real_frames_per_second", np.zeros(0))


class _Watch(threading.Thread):
    """Looks at the rows that a run writes: warm-up, window, then the signal that ends a run."""

    def __init__(self, folder: Path, warm_up_s: float, window_s: float):
        super().__init__(daemon=True)
        self._folder, self._warm_up_s, self._window_s = folder, warm_up_s, window_s
        self.rows = slice(0, 0)
        self.window: dict[str, Any] = {}

    def run(self) -> None:
        """Begin and end a window with a row each; rows are read but twice, since reading takes a core from the run."""
        while not self._bytes() or not len(_rates(self._folder)):
            time.sleep(10 * _SECONDS_BETWEEN_LOOKS)
        started = time.perf_counter()
        while time.perf_counter() - started < self._warm_up_s:
            self._next_row()
        window, first = Window(), len(_rates(self._folder))
        while window.seconds < self._window_s:
            self._next_row()
        self.window, self.rows = window.close(), slice(first, len(_rates(self._folder)))
        os.kill(os.getpid(), signal.SIGTERM)

    def _next_row(self) -> None:
        before = self._bytes()
        while self._bytes() == before:
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in _row_files(self._folder))


def measure(experiment: Experiment, warm_up_s: float, window_s: float) -> dict[str, Any]:
    """One whole run, ended by SIGTERM once its window is over."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        watch = _Watch(folder, warm_up_s, window_s)
        watch.start()
        launch.run(replace(experiment, log_every=1), folder, False, Console(quiet=True))
        watch.join()
        rows = {name: values[watch.rows] for name, values in _rows(folder).items()}
    updates = watch.rows.stop - watch.rows.start
    seconds = watch.window["window_s"]
    return {
        "decisions": updates * experiment.steps_per_rollout,
        "updates": updates,
        **watch.window,
        "share_of_learner_time": {
            name.removeprefix("time/").removesuffix("_seconds"): float(values.sum()) / seconds
            for name, values in rows.items()
            if name.startswith("time/")
        },
        "lag_versions_mean": float(rows["transport/lag_versions"].mean()),
        "dropped_steps": float(rows["transport/dropped_steps"][-1] - rows["transport/dropped_steps"][0]),
    }


def chosen(name: str, is_quick: bool) -> Experiment:
    """Return an experiment of the table; quick: so small that it only shows that it runs, and without Ray."""
    experiment = EXPERIMENTS[name]()
    if not is_quick:
        return experiment
    return replace(experiment, topology="colocated", actors=1, environments=4, environments_per_actor=None)


def ours(name: str, warm_up_s: float, window_s: float, is_quick: bool = False) -> dict[str, Any]:
    """Run `EXPERIMENTS[name]` in fresh processes, as the `metagrad` command would start it."""
    arguments = (name, str(warm_up_s), str(window_s), *(["quick"] if is_quick else []))
    variables = {"OMP_WAIT_POLICY": "PASSIVE"}
    answer = run_in_group("benchmarks.end_to_end_ours", arguments, seconds_at_most(warm_up_s, window_s), variables)
    return answer | {"settings": settings(chosen(name, is_quick))}


def main(name: str, warm_up_s: str, window_s: str, size: str = "whole") -> None:
    """Be one run."""
    answer = answering()
    answer(measure(chosen(name, size == "quick"), float(warm_up_s), float(window_s)))


if __name__ == "__main__":
    main(*sys.argv[1:])
