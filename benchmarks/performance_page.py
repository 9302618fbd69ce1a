"""The tables and figures of docs/performance.md, one function for each benchmark's result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import (
    PAGE,
    RESULTS,
    Table,
    fill,
    history_table,
    made_by,
    number,
    read_history,
    read_results,
    targets_table,
)
from metagrad.experiments.reporting.report import Panel, line_panels

Result = Mapping[str, Any]


def pipeline(result: Result) -> list[Table]:
    """Share of each phase."""
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


def schedules(result: Result) -> list[Table]:
    """Speeds of both schedules, and what the ratio could be."""
    keys = ("lockstep_real_frames_per_second", "peek_real_frames_per_second", "peek_over_lockstep")
    rows = [
        (name, *(float(case[key]["median"]) for key in keys), float(case["ratio_at_most"]))
        for name, case in result["schedules"].items()
    ]
    return [Table(("", "lockstep, real steps/s", "peek", "peek / lockstep", "at most, all cores busy"), rows)]


def tabular(result: Result) -> list[Table]:
    """Samples per second of the batch and of both loops."""
    rows = [
        (
            name,
            float(case["samples_per_s"]["batched"]),
            float(case["samples_per_s"]["loop"]),
            float(case["samples_per_s"]["written loop"]),
        )
        for name, case in result["trajectories"].items()
    ]
    return [Table(("", "batched, samples/s", "loop of the same code", "loop by hand"), rows)]


def environments(result: Result) -> list[Table]:
    """Every program's steps per second, the quickest of several settings, and the ratios."""
    tables = []
    for kind in ("snake", "atari"):
        rows = [
            (label, program, float(found["steps_per_s"]["median"]))
            for label, case in result[kind].items()
            for program, found in case["programs"].items()
        ]
        ratios = [
            (label, name, float(ratio["median"]))
            for label, case in result[kind].items()
            for name, ratio in case["ratios"].items()
        ]
        tables += [Table((kind, "program", "steps/s"), rows), Table((kind, "ratio of speeds", ""), ratios)]
    return tables


def _ways(lengths: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every way to a meta-gradient that was run at some length, in the order of the first."""
    rows = [name for ways in lengths.values() for name, row in ways.items() if isinstance(row, Mapping)]
    return [name for name in dict.fromkeys(rows) if name != "plain"]


def meta_gradient(result: Result) -> list[Table]:
    """Time in plain updates and peak memory, of each way over the length of the look-ahead."""
    tables = []
    for setting, lengths in result["time"].items():
        ways = _ways(lengths)
        rows = [
            (
                n,
                float(row["floor_plain_updates"]),
                *(float(row[way]["plain_updates"]["median"]) if way in row else "" for way in ways),
            )
            for n, row in lengths.items()
        ]
        tables.append(Table((f"{setting}: plain updates", "floor", *ways), rows))
    for setting, lengths in result["memory"].items():
        ways = _ways(lengths)
        rows = [(n, *(float(row[way]["peak_mib"]) if way in row else "" for way in ways)) for n, row in lengths.items()]
        tables.append(Table((f"{setting}: peak, MiB", *ways), rows))
    return tables


def meta_gradient_panels(result: Result) -> list[Panel]:
    """The same as curves over n."""
    panels = []
    for setting, lengths in result["time"].items():
        curves = [
            (
                way,
                [int(n.removeprefix("n = ")) for n, row in lengths.items() if way in row],
                [row[way]["plain_updates"]["median"] for row in lengths.values() if way in row],
                None,
            )
            for way in _ways(lengths)
        ]
        floor = [row["floor_plain_updates"] for row in lengths.values()]
        curves.append(("floor", [int(n.removeprefix("n = ")) for n in lengths], floor, None))
        panels.append(Panel(f"{setting}: time", "n", "plain updates", curves, is_log_y=True))
    return panels


def end_to_end(result: Result) -> list[Table]:
    """Every system's speed, and the floor's terms."""
    systems = [
        (
            name,
            float(system["decisions_per_s"]["median"]),
            f"{number(system['decisions_per_s']['q1'])} to {number(system['decisions_per_s']['q3'])}",
            float(system["cores_busy"]["median"]),
            float(system["cpu_ms_per_decision"]["median"]),
        )
        for name, system in result["systems"].items()
    ]
    floors = [
        (
            name,
            *(float(floor[f"{part}_ms"]["median"]) for part in ("environment", "inference", "gradient")),
            float(floor["floor_decisions_per_s"]["median"]),
            f"{floor['share_of_floor']['median']:.0%}",
        )
        for name, floor in result["floors"].items()
    ]
    return [
        Table(("system", "decisions/s", "quartiles", "cores busy", "CPU ms per decision"), systems),
        Table(("", "environment, ms", "inference", "gradient", "floor, decisions/s", "reached"), floors),
    ]


def scaling(result: Result) -> list[Table]:
    """Measured runs, the model where it was not fitted and beyond, and broadcasts."""
    runs = [
        (
            label,
            float(case["real_frames_per_second"]["median"]),
            f"{case['learner_idle_share']['median']:.0%}",
            float(case["rollout_bytes_per_second"]["median"] / 1e6),
        )
        for label, case in result["runs"].items()
    ]
    points = [
        (
            point["schedule"],
            point["actors"],
            float(point["predicted_frames_per_second"]),
            float(point["measured_frames_per_second"]),
            f"{point['throughput_relative_error']:+.0%}",
        )
        for point in result["model"]["points"]
        if point["is_held_out"]
    ]
    return [
        Table(("run", "real steps/s", "learner idle", "rollouts, MB/s"), runs),
        Table(("held out", "actors", "predicted, real steps/s", "measured", "error"), points),
        _predicted("these runs, more actors", result["model"]["more_actors"]),
        _predicted("Atari, learner on a GPU", result["model"]["atari"]),
        _broadcasts(result["broadcast"]),
    ]


def _predicted(label: str, rows: Sequence[Result]) -> Table:
    """Both schedules against actors; of peek's several settings the first."""

    def cells(row: Result) -> tuple[float, str]:
        return float(row["real_frames_per_second"]), f"{row['learner_idle_share']:.0%}"

    first = {(row["schedule"], row["actors"]): row for row in reversed(rows)}
    lines = [
        (actors, *cells(first["lockstep", actors]), *cells(first["peek", actors]))
        for actors in dict.fromkeys(row["actors"] for row in rows)
    ]
    return Table((f"{label}: actors", "lockstep, real steps/s", "learner idle", "peek", "learner idle"), lines)


def _broadcasts(nodes: Result) -> Table:
    """Milliseconds from the order to the last actor that has the weights."""
    ways = ("by_reference_s", "by_value_s", "calls_without_weights_s")
    rows = [
        (f"{place}, {label}", *(1000 * float(case[way]["median"]) for way in ways))
        for place, cases in nodes.items()
        for label, case in cases.items()
    ]
    return Table(("broadcast", "by reference, ms", "by value", "calls alone"), rows)


def scaling_panels(result: Result) -> list[Panel]:
    """Measured and predicted throughput against actors."""
    panels = []
    for schedule in ("lockstep", "peek"):
        points = [point for point in result["model"]["points"] if point["schedule"] == schedule]
        actors = [point["actors"] for point in points]
        curves = [
            (name, actors, [point[f"{name}_frames_per_second"] for point in points], None)
            for name in ("measured", "predicted")
        ]
        panels.append(Panel(schedule, "actors", "real steps/s", curves))
    return panels


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "environments": environments,
    "meta_gradient": meta_gradient,
    "end_to_end": end_to_end,
    "scaling": scaling,
    "pipeline": pipeline,
    "schedules": schedules,
    "tabular": tabular,
}
PANELS: dict[str, Callable[[Result], list[Panel]]] = {"meta_gradient": meta_gradient_panels, "scaling": scaling_panels}


def blocks(results: Mapping[str, Result], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What goes between each pair of marks."""
    filled = {"targets": str(targets_table(results)), "history": str(history_table(history))}
    for name, tables in TABLES.items():
        parts = ["Not measured yet."]
        if name in results:
            parts = [made_by(results[name]), *map(str, tables(results[name]))]
            parts += [f"![{name}](images/performance-{name}.png)"] if name in PANELS else []
        filled[name] = "\n\n".join(parts)
    return filled


def write_page(page: Path = PAGE, folder: Path = RESULTS) -> None:
    """Render the page and its figures from the results that there are."""
    results, history = read_results(folder), read_history(folder)
    for name, panels in PANELS.items():
        if name in results:
            line_panels(page.parent / "images" / f"performance-{name}.png", panels(results[name]))
    page.write_text(fill(page.read_text(), blocks(results, history)))


if __name__ == "__main__":
    write_page()
