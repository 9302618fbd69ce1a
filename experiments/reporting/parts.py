"""Reads what a study's report needs: results of its parts by their settings, and what they logged along training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.statistics import Array

Parts = Mapping[str, tuple[Settings, Result]]


def first_settings(parts: Parts) -> Settings:
    """Return the settings of the first part, for what all parts of a study share."""
    return next(iter(parts.values()))[0]


def results_of(parts: Parts, **settings: Any) -> list[Result]:
    """Return the results of all parts with these settings, in the order of their seeds."""
    own = [(s["seed"], r) for s, r in parts.values() if all(s.get(name) == x for name, x in settings.items())]
    return [result for _, result in sorted(own, key=lambda each: int(each[0]))]


def by_setting(parts: Parts, name: str) -> dict[str, list[Result]]:
    """Return results by the value of one setting, each group in the order of the seeds."""
    values = dict.fromkeys(settings[name] for settings, _ in parts.values())
    return {value: results_of(parts, **{name: value}) for value in values}


def sizes(is_quick: bool, **of: tuple[Any, Any]) -> Settings:
    """Return settings whose values are (of the whole study, of its quick version).

    >>> sizes(True, updates=(50_000, 6), samples=(96, 3))
    {'updates': 6, 'samples': 3}
    """
    return {name: quick if is_quick else whole for name, (whole, quick) in of.items()}


class Curves(NamedTuple):
    """Holds one quantity of several seeds along training."""

    updates: Array  # [K]
    values: Array  # [seeds, K]

    def at(self, update: int) -> Array | None:
        """Return the values [seeds] after so many updates; None where none were recorded."""
        found = np.flatnonzero(self.updates == update)
        return self.values[:, found[0]] if len(found) else None


def curves_of(results: Sequence[Result], name: str) -> Curves | None:
    """Return a logged quantity at the updates that all seeds that have it logged; None where there are none.

    A return is missing as long as no episode has ended, which is not at the same time for all seeds.
    """
    logged = [dict(zip(r[name]["updates"], r[name]["values"], strict=True)) for r in results if name in r]
    updates = sorted(set(logged[0]).intersection(*logged)) if logged else []
    if not updates:
        return None
    return Curves(np.array(updates, dtype=np.float64), np.array([[each[u] for u in updates] for each in logged]))
