"""Measures time and memory of a meta-gradient over the length n of its look-ahead, against other ways to compute it.

Settings: the Nature network on 5 steps of 64 environments, Snake's on 5 of 512, the problem of
`benchmarks.meta_gradient_cases`. Ours: `retain`, `recompute` and, the plainest exact way, `reference`: one reverse pass
through the whole graph. Theirs: TorchOpt's differentiable Adam under the same network, loss and clip, and JAX, network
and losses rewritten and the whole meta-update under one jit; `jax checkpoint` is its `recompute`. All are exact: the
largest difference of a component of the meta-gradient from the reference's, over that component plus a thousandth of
the norm, is in the result, and above TOLERANCE there is no result.

Time: everyone on one thread and the same core, in turn. Per setting and n beside one plain A2C update of the same
batch, and beside the arithmetic floor of an exact derivative by reverse mode, n + 1 gradients (inner, outer), n - 1
second-order products of two gradients each and one of two thirds: 3 n - 1/3 plain updates. For n = 10 and 20 there is
one round for five of the others, without one that is not counted: longer would take hours of which n = 5 tells all.
Compiling (JAX) is not counted, its seconds are given.

Memory: peak growth of a process that runs nothing else. Every step uses one and the same batch object, so that
trajectories, which the caller owns, are not counted; JAX has them among its arguments.

Targets. Nature, n = 3: `retain` takes at most 1.05 times as long as the fastest other exact way in torch, and less than
JAX. n = 20: `recompute` takes at most 1/5 of the reference's memory on Nature, 1/8 on Snake.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.alternative import Alternative, alternative
from benchmarks.harness import (
    GIVES_BACK,
    Timing,
    at_most,
    in_fresh_process,
    interleave,
    one_core,
    peak_growth_bytes,
    ratio_summary,
    time_summary,
    torch_threads,
)
from benchmarks.meta_gradient_cases import FORMS, LENGTHS, SETTINGS, STEPS, MetaUpdate, Setting

ALTERNATIVES = ("jax",)
SHORT_LENGTHS = (1, 3, 5)  # timed in all rounds
TARGET_LENGTH = 3  # of the targets in time
TOLERANCE = 1e-2
TIME_LIMIT, MEMORY_LIMITS = 1.05, {"nature": 1 / 5, "snake": 1 / 8}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"} | {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
}


class Theirs(NamedTuple):
    """One other way: a program, what precedes its cases' names, and the lengths it is run at."""

    program: str
    prefix: str
    lengths: tuple[int, ...]


# What JAX keeps of one step it keeps under jax.checkpoint too: that is run where it is asked for.
THEIRS: Mapping[str, Theirs] = {
    "torchopt": Theirs("torchopt_meta_gradient", "", LENGTHS),
    "jax": Theirs("jax_meta_gradient", "", LENGTHS),
    "jax checkpoint": Theirs("jax_meta_gradient", "checkpoint ", (3, 20)),
}


class Size(NamedTuple):
    """Says how much is run."""

    settings: Mapping[str, Setting]
    short: tuple[int, ...]  # lengths timed in all rounds
    long: tuple[int, ...]  # lengths timed in one round for five
    memory: tuple[int, ...]


FULL = Size(SETTINGS, SHORT_LENGTHS, tuple(n for n in LENGTHS if n not in SHORT_LENGTHS), LENGTHS)
QUICK = Size(
    {"nature": SETTINGS["nature"]._replace(environments=2), "snake": SETTINGS["snake"]._replace(environments=64)},
    (3,),
    (1,),
    (3,),
)


def difference(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest |a - b| / (|b| + ‖reference‖ / 1000) over the components, infinite where one is NaN.

    >>> difference([1.0, 0.0], [1.0, 0.001])
    0.49999987500006247
    """
    floor = sum(x * x for x in reference) ** 0.5 / 1000.0
    off = [abs(a - b) / (abs(b) + floor) for a, b in zip(found, reference, strict=True)]
    return math.inf if any(math.isnan(x) for x in off) else max(off)


class Race:
    """Runs all ways at one length; each remembers the meta-gradient that it gave last."""

    def __init__(self, ours: MetaUpdate, others: Mapping[str, Alternative], n: int):
        self.n = n
        self.given: dict[str, list[float]] = {}
        self.compile_s: dict[str, float] = {}
        self.cases: dict[str, Callable[[], Timing | None]] = {"plain": ours.plain}
        for name in FORMS:
            self.cases[name] = partial(self._run_ours, name, ours.form(name, n))
        for name, theirs in THEIRS.items():
            if theirs.program in others and n in theirs.lengths:
                self.cases[name] = partial(self._run_theirs, name, others[theirs.program])

    def _run_ours(self, name: str, form: Callable[[], Tensor]) -> None:
        self.given[name] = form().tolist()

    def _run_theirs(self, name: str, other: Alternative) -> Timing:
        run = other.run(f"{THEIRS[name].prefix}time {self.n}")
        self.given[name] = run.answer["meta_gradient"]
        if "compile_s" in run.answer:
            self.compile_s[name] = run.answer["compile_s"]
        return run.timing

    def rows(self, timings: Mapping[str, Sequence[Timing]]) -> dict[str, dict[str, Any]]:
        """Report each way.

        Raises:
            RuntimeError: one that gave another meta-gradient than the reference.
        """
        rows: dict[str, dict[str, Any]] = {"plain": time_summary(timings["plain"])}
        for name, given in self.given.items():
            off = difference(given, self.given["reference"])
            if off > TOLERANCE:
                raise RuntimeError(f"{name}, n = {self.n}: {given} is not the reference's {self.given['reference']}")
            over_plain = ratio_summary(timings[name], timings["plain"])["wall"]
            rows[name] = time_summary(timings[name]) | {
                "plain_updates": over_plain,
                "over_floor": over_plain["median"] / floor(self.n),
                "over_retain": ratio_summary(timings[name], timings["retain"])["wall"],
                "difference": off,
            }
            if name in self.compile_s:
                rows[name]["compile_s"] = self.compile_s[name]
        return rows


def floor(n: int) -> float:
    """Count the plain updates in an exact meta-gradient by reverse mode.

    >>> round(floor(3), 2)
    8.67
    """
    return n + 1 + 2 * (n - 1) + 2 / 3


def _peak_of_ours(setting: Setting, form: str, n: int) -> int:
    """Return the peak growth in bytes; runs in a fresh process."""
    with torch_threads(1):
        return peak_growth_bytes(MetaUpdate(setting).form(form, n))


Programs = Mapping[str, tuple[str, ...]]  # of the alternatives, with their arguments


def _peaks(setting: Setting, programs: Programs, variables: Mapping[str, str], n: int) -> dict[str, dict[str, float]]:
    """Measure the peak growth of each way at one length, each in its own process."""
    rows = {name: {"peak_mib": in_fresh_process(_peak_of_ours, setting, name, n) / 2**20} for name in FORMS}
    for name, theirs in THEIRS.items():
        if theirs.program in programs and n in theirs.lengths:
            with alternative(
                "jax", theirs.program, *programs[theirs.program], variables={**variables, **GIVES_BACK}
            ) as other:
                answer = other.run(f"{theirs.prefix}peak {n}").answer
            rows[name] = {"peak_mib": answer["peak_growth_bytes"] / 2**20}
            if "planned_bytes" in answer:
                rows[name]["planned_by_xla_mib"] = answer["planned_bytes"] / 2**20
    for row in rows.values():
        row["over_reference"] = row["peak_mib"] / rows["reference"]["peak_mib"]
    return rows


def _measure(name: str, size: Size, rounds: int, alone: bool) -> dict[str, Any]:
    """Times and peaks of one setting."""
    setting = size.settings[name]
    ours = MetaUpdate(setting)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "meta_update.npz"
        ours.write(file)
        programs: Programs = {} if alone else {
            "torchopt_meta_gradient": (name, str(setting.environments)),
            "jax_meta_gradient": (name, str(file)),
        }  # fmt: skip
        # What is compiled for the times is there for the peaks.
        variables = ONE_THREAD | {"JAX_COMPILATION_CACHE_DIR": folder}
        others = {
            program: stack.enter_context(alternative("jax", program, *arguments, variables=variables))
            for program, arguments in programs.items()
        }
        times = {}
        for n in (*size.short, *size.long):
            race = Race(ours, others, n)
            # What warms up did so at a shorter length.
            is_short = n in size.short
            timings = interleave(race.cases, rounds if is_short else max(1, rounds // 5), warm_up_rounds=int(is_short))
            times[f"n = {n}"] = {"floor_plain_updates": floor(n), **race.rows(timings)}
        versions: dict[str, str] = {}
        for other in others.values():
            versions |= other.versions
        peaks = {f"n = {n}": _peaks(setting, programs, variables, n) for n in size.memory}
    batch = {"parameters": ours.layout.size, "batch": [STEPS, setting.environments], "device": str(ours.device)}
    return {"setting": batch, "time": times, "memory": peaks, "versions": versions}


def run(rounds: int, quick: bool, alone: bool) -> dict[str, Any]:
    """Times, peaks, ratios and targets; quick: small batches, up to n = 3; alone: without TorchOpt and JAX."""
    size = QUICK if quick else FULL
    with one_core():
        measured = {name: _measure(name, size, rounds, alone) for name in size.settings}
    versions = {package: version for part in measured.values() for package, version in part.pop("versions").items()}
    by_kind: dict[str, Any] = defaultdict(dict)
    for name, part in measured.items():
        for kind, rows in part.items():
            by_kind[kind][name] = rows
    longest = f"n = {max(size.memory)}"
    return {
        **by_kind,
        "versions": versions,
        "ratios": _ratios(by_kind["time"], by_kind["memory"], longest),
        "targets": _targets(by_kind["time"], by_kind["memory"], longest),
    }


def _ratios(time: Mapping[str, Any], memory: Mapping[str, Any], longest: str) -> dict[str, float]:
    """Compare `retain` in speed, and `recompute` in memory, with each other way."""
    ratios = {}
    at = f"n = {TARGET_LENGTH}"
    for setting, lengths in time.items():
        for name in ("reference", *THEIRS):
            if name in lengths[at]:
                ratios[f"{setting}, {at}: speed over {name}"] = lengths[at][name]["over_retain"]["median"]
            if name in memory[setting][longest]:
                rows = memory[setting][longest]
                ratios[f"{setting}, {longest}: {name}'s memory over recompute's"] = (
                    rows[name]["peak_mib"] / rows["recompute"]["peak_mib"]
                )
    return ratios


def _targets(time: Mapping[str, Any], memory: Mapping[str, Any], longest: str) -> list[dict[str, Any]]:
    rows = time["nature"][f"n = {TARGET_LENGTH}"]
    exact = {name: rows[name]["over_retain"]["median"] for name in ("reference", *THEIRS) if name in rows}
    targets = []
    in_torch = min(ratio for name, ratio in exact.items() if not name.startswith("jax"))
    label = f"nature, n = {TARGET_LENGTH}: retain's wall time over"
    targets.append(at_most(f"{label} torch's other exact ways", 1.0 / in_torch, TIME_LIMIT))
    if "jax" in exact:
        targets.append(at_most(f"{label} JAX's", 1.0 / exact["jax"], 1.0))
    for setting, limit in MEMORY_LIMITS.items():
        value = memory[setting][longest]["recompute"]["over_reference"]
        targets.append(at_most(f"{setting}, {longest}: recompute's peak over whole-graph reverse mode's", value, limit))
    return targets
