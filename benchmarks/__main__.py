"""`python -m benchmarks NAME [--record] [--json FILE] [--rounds N] [--alone] [--quick]`: run and keep a benchmark.

NAME `all` runs every one of them, each in a process of its own.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.alternative import NotInstalled, interpreter
from benchmarks.harness import MIN_ROUNDS, machine_record, render, write_json
from benchmarks.performance_page import write_page
from benchmarks.report import keep

# Each module has run(rounds, quick) -> dict, and its docstring says what is measured against what. One that runs
# programs of other environments names these in ALTERNATIVES and has run(rounds, quick, alone): alone, it leaves them
# out. Of what is returned, "ratios" (label -> ours over the alternative, more is better) go into the history, "targets"
# into the exit code.
BENCHMARKS = {
    "end_to_end": "benchmarks.end_to_end",
    "meta_gradient": "benchmarks.meta_gradient",
    "environments": "benchmarks.environments",
    "feeding": "benchmarks.feeding",
    "lifetimes": "benchmarks.lifetimes",
    "pipeline": "benchmarks.pipeline",
    "precision": "benchmarks.precision",
    "scaling": "benchmarks.scaling",
    "schedules": "benchmarks.schedules",
    "tabular": "benchmarks.tabular",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmark; 1 where it states a target that it did not meet, 2 for a wrong argument."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < MIN_ROUNDS and not options.quick:
        parser.error(f"--rounds = {options.rounds}: at least {MIN_ROUNDS} for a median with quartiles; or add --quick")
    if options.rounds < 1:
        parser.error(f"--rounds = {options.rounds}: at least 1")
    if options.record and (options.quick or options.alone):
        parser.error("--record: --quick and --alone are no measurement of ours against others; leave one of them out")
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    modules = {name: importlib.import_module(BENCHMARKS[name]) for name in names}
    environments = {x for module in modules.values() for x in getattr(module, "ALTERNATIVES", ())}
    if options.alone and not environments:
        parser.error(f"--alone: {options.name} runs nothing but ours; leave it out")
    try:
        for environment in () if options.alone else sorted(environments):
            interpreter(environment)
    except NotInstalled as error:
        parser.error(str(error))
    if options.name == "all":
        return _run_all(modules, options)
    return _run_one(options, modules[options.name])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run one benchmark and print its result.")
    parser.add_argument("name", choices=[*BENCHMARKS, "all"], help="which benchmark")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here; of all: a folder")
    parser.add_argument(
        "--record", action="store_true", help="keep the result in benchmarks/results and render docs/performance.md"
    )
    parser.add_argument(
        "--rounds", type=int, default=MIN_ROUNDS, metavar="N", help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--alone", action="store_true", help="leave the alternatives out, and what compares with them")
    parser.add_argument("--quick", action="store_true", help="a small case that only shows that the benchmark runs")
    return parser


def _run_one(options: argparse.Namespace, module: Any) -> int:
    compares = bool(getattr(module, "ALTERNATIVES", ()))
    machine = machine_record()
    result = {
        "benchmark": options.name,
        "is_quick": options.quick,
        "is_alone": options.alone,
        "machine": machine,
        **module.run(rounds=options.rounds, quick=options.quick, **({"alone": options.alone} if compares else {})),
    }
    print(render(result))
    if options.json:
        write_json(options.json, result)
    if options.record:
        keep(result)
        write_page()
    # A quick case is no measurement: its targets are shown and decide nothing.
    return 0 if options.quick or all(target["met"] for target in result.get("targets", [])) else 1


def _run_all(modules: dict[str, Any], options: argparse.Namespace) -> int:
    """Run all and return the worst exit code; one that fails does not keep the others from running."""
    worst = 0
    for name, module in modules.items():
        words = [sys.executable, "-m", "benchmarks", name, "--rounds", str(options.rounds)]
        words += ["--alone"] if options.alone and getattr(module, "ALTERNATIVES", ()) else []
        words += ["--json", str(options.json / f"{name}.json")] if options.json else []
        words += [f"--{flag}" for flag in ("record", "quick") if getattr(options, flag)]
        print(f"== {name}", flush=True)
        worst = max(worst, subprocess.run(words, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
