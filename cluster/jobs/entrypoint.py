"""Make what the cluster is told to execute: a job's shell command, its variables and its runtime environment."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from metagrad.cluster.jobs.package import FOLDER, VARIABLES, pinned_requirements
from metagrad.cluster.on_ray.job_environment import JOB_FOLDER, JOB_VARIABLES
from metagrad.errors import require

_WITHOUT_INSTALLATION = "python -P -c 'import sys; from metagrad.cli.entry import main; sys.exit(main())'"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def job_variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a job by name; no message shows their values.

    Args:
        given: NAME=VALUE, or NAME for the value that it has in the environment.
        environment: of this process.

    Raises:
        ConfigurationError: no name, one that is given twice, one without a value, or a value with a null byte.
    """
    found: dict[str, str] = {}
    for word in given:
        name, is_given, value = word.partition("=")
        shown = name if not is_given else f"{name}=…"
        rule, remedy = "is not NAME=VALUE with a name of letters, digits and underscores", "name it as a shell does"
        require(bool(_VARIABLE.fullmatch(name)), "job-env", shown, rule, remedy)
        require(name not in found, "job-env", shown, "is given twice", "give it once")
        rule, remedy = "has no value here", f"use --job-env {name}=VALUE, or set {name} before"
        require(bool(is_given) or name in environment, "job-env", shown, rule, remedy)
        found[name] = value if is_given else environment[name]
        require("\0" not in found[name], "job-env", shown, "contains a null byte", "remove it")
    return found


def runtime_env(
    stop_seconds: int, variables: Sequence[str] = (), packages: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the job's runtime environment.

    Ray sends SIGTERM and, RAY_JOB_STOP_WAIT_TIME_S later, SIGKILL; its own 3 s are too few for a checkpoint.

    Args:
        stop_seconds: from SIGTERM to SIGKILL.
        variables: names of the job's variables; their values travel in its files.
        packages: further ones for pip, which then installs metagrad's too; None: pip installs nothing.
    """
    own = {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds), JOB_FOLDER: FOLDER}
    own |= {JOB_VARIABLES: " ".join(variables)} if variables else {}
    environment: dict[str, Any] = {"env_vars": own}
    if packages is not None:
        environment["pip"] = {"packages": pinned_requirements(packages)}
    return environment


def entrypoint(train: Sequence[str], imported: Sequence[str], brings_metagrad: bool, has_variables: bool) -> str:
    """Return the job's shell command: `metagrad train`, by `exec`, so that SIGTERM reaches no shell.

    It starts at the top of the archive. `-P` keeps the current folder off Python's path.

    Args:
        train: the command's words from `train` on.
        imported: files of --import by their places in the job's folder.
        brings_metagrad: the archive holds metagrad, which is not installed there.
        has_variables: the archive holds variables to be set first.
    """
    command = _WITHOUT_INSTALLATION if brings_metagrad else "metagrad"
    imports = [word for place in imported for word in ("--import", place)]
    variables = f". ./{VARIABLES} && " if has_variables else ""
    return f"{variables}cd {FOLDER} && exec {command} {shlex.join([*imports, *train])}"
