"""Serves or makes runs, as every program does that plays Pong for `end_to_end`; each run is its own session."""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from benchmarks.alternatives.serve import serve
from benchmarks.end_to_end_group import answering, run_in_group, seconds_at_most


def serve_pong(
    program: str,
    measure: Callable[[float, float, Any], Mapping[str, Any]],
    settings: Mapping[str, Any],
    packages: Sequence[str],
    arguments: Sequence[str],
) -> None:
    """Serve the command line of such a program.

    Args:
        program: its module, which calls this.
        measure: one whole run, of (seconds of warm-up, seconds of the window, settings).
        settings: for it, and told with its result.
        packages: whose versions are told.
        arguments: "serve" or "run", then both numbers of seconds.
    """
    purpose, *times = arguments
    warm_up_s, window_s = (float(seconds) for seconds in times)
    if purpose == "run":
        answer = answering()
        answer(measure(warm_up_s, window_s, settings))
        return
    limit = seconds_at_most(warm_up_s, window_s)
    serve(
        {"pong": lambda: run_in_group(program, ("run", *times), limit) | {"settings": settings}},
        {package: metadata.version(package) for package in packages},
    )
