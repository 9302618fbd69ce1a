"""Compares speeds of programs that ran in turn: steps per second, the best settings of each, ratios round by round."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.harness import Timing, summary


class Program(NamedTuple):
    """Describes what is timed, and how many steps of one environment a run has."""

    run: Callable[[], object]
    steps: int


def compare(
    programs: Mapping[str, Program], timings: Mapping[str, list[Timing]], pairs: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return a row for every program, the best settings of every group, and ratios of speeds, round by round.

    A program's name is `GROUP`, or `GROUP, SETTINGS` of those of which the fastest counts (median of steps/s).

    Args:
        programs: by name.
        timings: by the same names, as many of each.
        pairs: label of a ratio -> two groups, or programs, whose speeds it compares, the first over the second.
    """
    rates = {name: [program.steps / timing.wall_s for timing in timings[name]] for name, program in programs.items()}
    rows = {
        name: {
            "steps_per_s": summary(rates[name]),
            "cores_busy": summary([timing.cpu_s / timing.wall_s for timing in timings[name]]),
        }
        for name in programs
    }
    groups: dict[str, list[str]] = {}
    for name in programs:
        groups.setdefault(name.partition(",")[0], []).append(name)
    best = {group: max(names, key=lambda name: rows[name]["steps_per_s"]["median"]) for group, names in groups.items()}
    ratios = {
        label: summary([a / b for a, b in zip(rates[best.get(over, over)], rates[best.get(under, under)], strict=True)])
        for label, (over, under) in pairs.items()
    }
    return {"programs": rows, "best": best, "ratios": ratios}
