"""Render docs/performance.md from the newest results: the promises, and one table for each question.

Whole results are benchmarks/results/*.json; how each was made, and the history of all ratios, is the README beside
them, which is rendered here too. `python -m benchmarks.performance_page` renders both again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import (
    PAGE,
    RESULTS,
    Table,
    fill,
    history_table,
    made_by,
    read_history,
    read_results,
    targets_table,
)
from metagrad.experiments.reporting.figures import Panel, line_panels

Result = Mapping[str, Any]
SHOWN = ("n = 3", "n = 20")  # lengths of look-ahead in the table of meta-gradients
_RESULTS_HEAD = "# Results\n\nHow the newest result of each benchmark was made, and every ratio now and before.\n"


def environments(result: Result) -> list[Table]:
    """Tabulate steps per second of every kind of program, each with the best of its settings."""
    tables = []
    for kind in ("snake", "atari"):
        best: dict[str, dict[str, float]] = {}
        for label, case in result[kind].items():
            speeds = best.setdefault(label, {})
            for program, found in case["programs"].items():
                group = program.partition(",")[0]
                speeds[group] = max(speeds.get(group, 0.0), found["steps_per_s"]["median"])
        groups = list(dict.fromkeys(group for speeds in best.values() for group in speeds))
        rows = [(label, *(speeds.get(group, "") for group in groups)) for label, speeds in best.items()]
        tables.append(Table((f"{kind}, steps/s", *groups), rows))
    return tables


def _ways(lengths: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return every way to a meta-gradient that was run at some length, in the order of the first."""
    rows = [name for ways in lengths for name, row in ways.items() if isinstance(row, Mapping)]
    return [name for name in dict.fromkeys(rows) if name != "plain"]


def meta_gradient(result: Result) -> list[Table]:
    """Tabulate time and peak memory of every way at two lengths of look-ahead."""
    tables = []
    for setting, time in result["time"].items():
        memory = result["memory"][setting]
        rows = [
            (
                way,
                *(time[n][way]["plain_updates"]["median"] if way in time[n] else "" for n in SHOWN),
                *(float(memory[n][way]["peak_mib"]) if way in memory[n] else "" for n in SHOWN),
            )
            for way in _ways(time.values())
        ]
        heads = [f"{n}, {unit}" for unit in ("plain updates", "peak MiB") for n in SHOWN]
        tables.append(Table((setting, *heads), rows))
    return tables


def meta_gradient_panels(result: Result) -> list[Panel]:
    """Draw time over the length of the look-ahead."""
    panels = []
    for setting, lengths in result["time"].items():
        curves = [
            (
                way,
                [int(n.removeprefix("n = ")) for n, row in lengths.items() if way in row],
                [row[way]["plain_updates"]["median"] for row in lengths.values() if way in row],
                None,
            )
            for way in _ways(lengths.values())
        ]
        floor = [row["floor_plain_updates"] for row in lengths.values()]
        curves.append(("floor", [int(n.removeprefix("n = ")) for n in lengths], floor, None))
        panels.append(Panel(f"{setting}: time", "n", "plain updates", curves, is_log_y=True))
    return panels


def end_to_end(result: Result) -> list[Table]:
    """Tabulate every system's speed, and which share of the floor it reaches where that is known."""
    floors = result["floors"]
    rows = [
        (
            name,
            float(system["decisions_per_s"]["median"]),
            float(system["cores_busy"]["median"]),
            float(system["cpu_ms_per_decision"]["median"]),
            f"{floors[name]['share_of_floor']['median']:.0%}" if name in floors else "",
        )
        for name, system in result["systems"].items()
    ]
    return [Table(("system", "decisions/s", "cores busy", "CPU ms per decision", "of the floor"), rows)]


def scaling(result: Result) -> list[Table]:
    """Tabulate waiting runs of both schedules against actors, and broadcasts to the largest number of them."""
    runs = {(row["schedule"], row["actors"]): row for label, row in result["runs"].items() if _is_waiting(label)}
    rows = [
        (actors, *(cell for schedule in ("lockstep", "peek") for cell in _speed(runs[schedule, actors])))
        for actors in dict.fromkeys(actors for _, actors in runs)
    ]
    sent = [
        (f"{place}, {label}", *(1000 * float(case[way]["median"]) for way in ("by_reference_s", "by_value_s")))
        for place, cases in result["broadcast"].items()
        for label, case in cases.items()
        if label.endswith("8 actors")
    ]
    return [
        Table(("actors", "lockstep, real steps/s", "of the plan", "peek, real steps/s", "of the plan"), rows),
        Table(("broadcast", "by reference, ms", "by value, ms"), sent),
    ]


def _is_waiting(label: str) -> bool:
    return label.startswith("waiting") and not label.endswith("layouts")


def _speed(row: Result) -> tuple[float, str]:
    return float(row["real_frames_per_second"]["median"]), f"{row['share_of_plan']:.0%}"


def pipeline(result: Result) -> list[Table]:
    """Tabulate the share of each phase."""
    phases = ("sample", "inner", "outer", "meta")
    rows = [
        (
            f"`{experiment}`",
            topology,
            *(f"{case[phase]['median']:.0%}" if phase in case else "" for phase in phases),
            float(case["real_frames_per_second"]["median"]),
        )
        for experiment, topologies in result["phases"].items()
        for topology, case in topologies.items()
    ]
    return [Table(("experiment", "topology", *phases, "real steps/s"), rows)]


def precision(result: Result) -> list[Table]:
    """Tabulate what a decision costs in both precisions."""
    rows = [
        (
            name,
            *(float(case["cpu_ms_per_decision"][each]["median"]) for each in ("float32", "bf16-mixed")),
            float(case["times_as_fast"]["median"]),
        )
        for name, case in result["cases"].items()
    ]
    return [Table(("", "float32, CPU ms per decision", "bf16-mixed", "times as fast"), rows)]


def feeding(result: Result) -> list[Table]:
    """Tabulate what rollouts of Atari's size cost a learner that only takes them."""
    keys = ("decisions_per_s", "learner_cpu_us_per_decision", "cpu_us_per_decision", "bytes_per_decision")
    rows = [(name, *(float(case[key]["median"]) for key in keys)) for name, case in result["runs"].items()]
    return [Table(("", "decisions/s", "learner, CPU µs per decision", "all, CPU µs", "bytes"), rows)]


def schedules(result: Result) -> list[Table]:
    """Tabulate the speeds of both schedules, and what the ratio could be."""
    keys = ("lockstep_real_frames_per_second", "peek_real_frames_per_second", "peek_over_lockstep")
    rows = [
        (name, *(float(case[key]["median"]) for key in keys), float(case["ratio_at_most"]))
        for name, case in result["schedules"].items()
    ]
    return [Table(("", "lockstep, real steps/s", "peek", "peek / lockstep", "at most, all cores busy"), rows)]


def tabular(result: Result) -> list[Table]:
    """Tabulate samples per second of the batch and of both loops."""
    ways = ("batched", "loop", "written loop")
    rows = [
        (name, *(float(case["samples_per_s"][way]) for way in ways)) for name, case in result["trajectories"].items()
    ]
    return [Table(("", "batched, samples/s", "loop of the same code", "loop by hand"), rows)]


def lifetimes(result: Result) -> list[Table]:
    """Tabulate updates per second of CPU time of the batch and of both loops, and peak memory over 20 updates."""
    ways = ("batched", "loop", "written loop")
    speeds = [
        (f"{name}, {size}", *(float(found["updates_per_cpu_s"][way]["median"]) for way in ways))
        for name, by_size in result["speed"].items()
        for size, found in by_size.items()
    ]
    forms = ("retain", "recompute", "whole graph")
    peaks = [(name, *(float(found[form]) for form in forms)) for name, found in result["memory_mib"].items()]
    setting = result["setting"]
    memory_head = f"peak MiB, K = {setting['updates_in_memory']}, {setting['in_memory']}"
    return [
        Table(("updates per CPU second", "batched", "loop of the same code", "loop by hand"), speeds),
        Table((memory_head, *forms), peaks),
    ]


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "environments": environments,
    "meta_gradient": meta_gradient,
    "end_to_end": end_to_end,
    "scaling": scaling,
    "feeding": feeding,
    "pipeline": pipeline,
    "precision": precision,
    "schedules": schedules,
    "tabular": tabular,
    "lifetimes": lifetimes,
}
FIGURE = "performance-meta_gradient.png"


def blocks(results: Mapping[str, Result]) -> dict[str, str]:
    """Return what goes between each pair of marks."""
    promises = targets_table(results)
    filled = {"targets": str(Table(promises.head[1:], [row[1:] for row in promises.rows]))}  # their names say it all
    for name, tables in TABLES.items():
        shown = map(str, tables(results[name])) if name in results else ["Not measured yet."]
        filled[name] = "\n\n".join(shown)
    return filled


def results_page(results: Mapping[str, Result], history: Sequence[Mapping[str, Any]]) -> str:
    """Return the README of the results: what made each, and the history of their ratios."""
    made = "\n".join(f"- {made_by(result)}" for result in results.values())
    return f"{_RESULTS_HEAD}\n{made}\n\n{history_table(history)}\n"


def write_page(page: Path = PAGE, folder: Path = RESULTS) -> None:
    """Render both pages and the figure from the results that there are."""
    results = read_results(folder)
    if "meta_gradient" in results:
        line_panels(page.parent / "images" / FIGURE, meta_gradient_panels(results["meta_gradient"]))
    page.write_text(fill(page.read_text(), blocks(results)))
    (folder / "README.md").write_text(results_page(results, read_history(folder)))


if __name__ == "__main__":
    write_page()
