"""Measures environment steps per second: Snake against Jumanji's and EnvPool's, Atari's actor loop against bare pools.

What is measured against what: `environments_snake.py` and `environments_atari.py`. Everything runs in turn, round by
round, Jumanji in an environment of its own, ours on the CPU.
"""

from typing import Any

from benchmarks import environments_atari, environments_snake
from benchmarks.harness import at_least

ALTERNATIVES = ("jax",)
# Of Jumanji one XLA device, jit + vmap + scan, was meant; shared out by hand among two it is held to the same.
SNAKE_PROMISES = {
    ("Snake 12x12, 4096", "ours over Jumanji, devices: 1"): 3.0,
    ("Snake 12x12, 512", "ours over Jumanji, devices: 1"): 1.5,
    ("Snake 12x12, 4096", "ours over Jumanji, devices: 2"): 3.0,
    ("Snake 12x12, 512", "ours over Jumanji, devices: 2"): 1.5,
    ("Snake 12x12, 512", "ours over EnvPool"): 20.0,
}
ATARI_PROMISES = {"loop without policy over bare": 0.95, "loop over bare and forward": 0.90}


def run(rounds: int, quick: bool, alone: bool) -> dict[str, Any]:
    """Measure steps per second of every program and their ratios.

    `quick` takes small batches; `alone` measures Snake without the alternatives.
    """
    cases = [environments_snake.quick(case) if quick else case for case in environments_snake.CASES]
    snake, versions = environments_snake.measure_snake(cases, rounds, alone)
    atari = environments_atari.measure_atari(rounds, quick)
    ratios = {
        (label, ratio): found["median"]
        for label, case in (snake | atari).items()
        for ratio, found in case["ratios"].items()
    }
    promises = SNAKE_PROMISES | {(label, ratio): limit for label in atari for ratio, limit in ATARI_PROMISES.items()}
    return {
        "versions": versions,
        "snake": snake,
        "atari": atari,
        "ratios": {f"{label}: {ratio}": value for (label, ratio), value in ratios.items()},
        # A quick Snake has other sizes than were promised for, and alone there is nobody to compare it with.
        "targets": [
            at_least(f"{label}: {ratio}", ratios[label, ratio], limit)
            for (label, ratio), limit in promises.items()
            if (label, ratio) in ratios
        ],
    }
