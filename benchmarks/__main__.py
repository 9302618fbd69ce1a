"""`python -m benchmarks NAME [--json FILE] [--rounds N] [--alone] [--quick]`: run one benchmark, print it, keep it."""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.alternative import NotInstalled, interpreter
from benchmarks.harness import MIN_ROUNDS, machine_record, render, write_json

# Each module has run(rounds, quick) -> dict, and its docstring says what is measured against what. One that runs
# programs of other environments names these in ALTERNATIVES and has run(rounds, quick, alone): alone, it leaves them
# out. Of what is returned, "ratios" (label -> ours over the alternative, more is better) go into the history, "targets"
# into the exit code.
BENCHMARKS = {
    "meta_gradient": "benchmarks.meta_gradient",
    "environments": "benchmarks.environments",
    "pipeline": "benchmarks.pipeline",
    "schedules": "benchmarks.schedules",
    "tabular": "benchmarks.tabular",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmark; 1 where it states a target that it did not meet, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run one benchmark and print its result.")
    parser.add_argument("name", choices=BENCHMARKS, help="which benchmark")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    parser.add_argument(
        "--rounds", type=int, default=MIN_ROUNDS, metavar="N", help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--alone", action="store_true", help="leave the alternatives out, and what compares with them")
    parser.add_argument("--quick", action="store_true", help="a small case that only shows that the benchmark runs")
    options = parser.parse_args(arguments)
    if options.rounds < MIN_ROUNDS and not options.quick:
        parser.error(f"--rounds = {options.rounds}: at least {MIN_ROUNDS} for a median with quartiles; or add --quick")
    if options.rounds < 1:
        parser.error(f"--rounds = {options.rounds}: at least 1")

    module = importlib.import_module(BENCHMARKS[options.name])
    environments = getattr(module, "ALTERNATIVES", ())
    if options.alone and not environments:
        parser.error(f"--alone: {options.name} runs nothing but ours; leave it out")
    try:
        for environment in () if options.alone else environments:
            interpreter(environment)
    except NotInstalled as error:
        parser.error(str(error))
    machine = machine_record()
    result = {
        "benchmark": options.name,
        "is_quick": options.quick,
        "machine": machine,
        **module.run(rounds=options.rounds, quick=options.quick, **({"alone": options.alone} if environments else {})),
    }
    print(render(result))
    if options.json:
        write_json(options.json, result)
    # A quick case is no measurement: its targets are shown and decide nothing.
    return 0 if options.quick or all(target["met"] for target in result.get("targets", [])) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
