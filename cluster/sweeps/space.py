"""Turn the words of a sweep, such as `optimizer.learning-rate=1e-4,3e-4`, into the settings of its trials."""

import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from metagrad.errors import require

Setting = dict[str, str]
"""Values by option, both as words of the command line."""
_MOST_TRIALS = 10_000
_SEARCH = re.compile(r"random:([1-9]\d{0,4})")


def require_tune() -> None:
    """Refuse a sweep where Ray Tune's packages are not installed, or where its workers would never begin.

    Raises:
        ConfigurationError: a package is missing, or a shell would split the path of this Python.
    """
    for package in ("pandas", "pyarrow", "tensorboardX"):
        rule = f"needs Ray Tune, whose package {package} is not installed"
        require(find_spec(package) is not None, "command", "sweep", rule, "pip install 'metagrad[tune]'")
    # Tune gives its workers variables of their own; such workers Ray begins in a shell, without quotes.
    rule, remedy = "has a space or the like, and Ray Tune begins no worker there", "install metagrad in another folder"
    require(shlex.quote(sys.executable) == sys.executable, "python", sys.executable, rule, remedy)


def settings(
    grid: Sequence[str], uniform: Sequence[str], log_uniform: Sequence[str], search: str | None, seed: int
) -> list[Setting]:
    """Return the settings to try: all combinations of the choices, or so many random ones.

    Args:
        grid: FIELD=VALUE,VALUE…, the choices of each option.
        uniform: FIELD=LOW,HIGH, between which a random search draws.
        log_uniform: the same, on a logarithmic scale.
        search: "random:N" draws N settings; None tries all combinations of `grid`.
        seed: of what is drawn.

    Raises:
        ConfigurationError: something is no such word, an option is named twice, or there are too many combinations.
    """
    choices = {field: values for field, values in (_field(word, "grid") for word in grid)}
    ranges = {
        field: (_bounds(values, word, kind), kind)
        for kind, words in (("uniform", uniform), ("log-uniform", log_uniform))
        for word in words
        for field, values in [_field(word, kind)]
    }
    named = len(grid) + len(uniform) + len(log_uniform)
    is_once = len(choices.keys() | ranges.keys()) == named
    require(is_once, "grid", " ".join((*grid, *uniform, *log_uniform)), "name an option twice", "name it once")
    if search is None:
        rule, remedy = "are drawn from by a random search", "add --search random:16, say"
        require(not ranges, "uniform", " ".join((*uniform, *log_uniform)), rule, remedy)
        count = int(np.prod([len(values) for values in choices.values()], dtype=float))
        require(count <= _MOST_TRIALS, "grid", count, f"are more than {_MOST_TRIALS} combinations", "use --search")
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    match = _SEARCH.fullmatch(search)
    require(match is not None, "search", search, "must be random:N with N from 1 to 99999", "use random:16, say")
    assert match is not None
    require(named > 0, "search", search, "has nothing to draw", "add --grid, --uniform or --log-uniform")
    return [_drawn(choices, ranges, seed, index) for index in range(int(match[1]))]


def _drawn(
    choices: dict[str, list[str]], ranges: dict[str, tuple[tuple[float, float], str]], seed: int, index: int
) -> Setting:
    """Draw the setting of an index, which does not depend on how many there are."""
    from ray import tune  # needs packages of an extra

    generator = np.random.default_rng((seed, index))
    kinds = {"uniform": tune.uniform, "log-uniform": tune.loguniform}
    found: Setting = {
        field: str(tune.choice(values).sample(random_state=generator)) for field, values in choices.items()
    }
    return found | {
        field: f"{kinds[kind](*bounds).sample(random_state=generator):.6g}" for field, (bounds, kind) in ranges.items()
    }


def _field(word: str, option: str) -> tuple[str, list[str]]:
    field, _, given = word.partition("=")
    values = given.split(",")
    is_one = re.fullmatch(r"[a-z][\w.-]*", field) is not None and all(values) and len(set(values)) == len(values)
    require(is_one, option, word, "must be FIELD=VALUE,VALUE… with different values", "correct it")
    return field.replace("_", "-"), values


def _bounds(values: list[str], word: str, option: str) -> tuple[float, float]:
    rule = "must be FIELD=LOW,HIGH with numbers LOW < HIGH" + (", above 0" if option == "log-uniform" else "")
    try:
        low, high = map(float, values)
    except ValueError:
        low, high = 0.0, 0.0
    is_range = low < high < float("inf") and low > (0.0 if option == "log-uniform" else -float("inf"))
    require(is_range, option, word, rule, "correct it")
    return low, high
