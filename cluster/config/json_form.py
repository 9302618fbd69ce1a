"""Convert configurations to JSON and back; only configuration types come out of it."""

import dataclasses
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metagrad.actor_critic import A2cLoss
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.ruled import RuledExperiment
from metagrad.errors import require


def config_types() -> dict[str, type[Any]]:
    """Find every type that an experiment can hold, by name: those its fields mention, and all subclasses of these.

    So a new environment or loss is known as soon as the file that defines it has been imported.
    """
    found: dict[str, type[Any]] = {}
    waiting: list[Any] = [BaseExperiment, Experiment, RuledExperiment]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if not isinstance(hint, type) or not dataclasses.is_dataclass(hint) or found.get(hint.__name__) is hint:
            continue
        if _is_replaced(hint):
            continue
        rule, remedy = "is the name of two configuration types", "rename one of them"
        require(hint.__name__ not in found, "configuration", hint.__name__, rule, remedy)
        found[hint.__name__] = hint
        waiting += [*hint.__subclasses__(), *get_type_hints(hint).values()]
    return {name: kind for name, kind in found.items() if not inspect.isabstract(kind)}


def _is_replaced(kind: type[Any]) -> bool:
    """Return True for a class that `dataclass(slots=True)` has replaced by a second one, and that goes later."""
    if "__slots__" in vars(kind):
        return False
    siblings: list[type[Any]] = kind.__bases__[0].__subclasses__()
    place = (kind.__module__, kind.__qualname__)
    return any((x.__module__, x.__qualname__) == place and "__slots__" in vars(x) for x in siblings)


def to_json(config: Any) -> Any:
    """Convert a configuration to dictionaries, lists and scalars, each dataclass with its "type"."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__} | fields
    if isinstance(config, tuple):
        return [to_json(each) for each in config]
    return config


def from_json(tree: Any) -> Any:
    """Invert `to_json`; only configuration types can come out of it, each field of the type it declares.

    Raises:
        ConfigurationError: an unknown type, or a value of another type than its field's, or that the field refuses.
    """
    return _from_json(tree, config_types())


_RENAMED = {
    "A2cParameters": "A2cLoss",
    "VtraceParameters": "VtraceLoss",
    "IntrinsicRewardParameters": "IntrinsicRewardLoss",
    "ChainParameters": "TrueValueLoss",
    "OuterConfig": "OuterObjective",
    "AdamConfig": "Adam",
    "RmsPropConfig": "RmsProp",
    "SgdConfig": "Sgd",
}
"""Types by the names that older run folders have for them."""


def _from_json(tree: Any, types: dict[str, type[Any]]) -> Any:
    if isinstance(tree, list):
        return tuple(_from_json(each, types) for each in tree)
    if not isinstance(tree, dict):
        return tree
    name = tree.get("type")
    if isinstance(name, str) and name not in types:
        name = _RENAMED.get(name, name)
    remedy = "give the file that defines it: metagrad --import FILE.py …"
    require(name in types, "config.json type", name, "is not a configuration type known here", remedy)
    kind = types[str(name)]
    fields = {key: _from_json(value, types) for key, value in tree.items() if key != "type"}
    if issubclass(kind, BaseExperiment):
        _bring_up_to_date(fields)
    for key, hint in get_type_hints(kind).items():
        if key in fields:
            expected = f"must be {hint if get_args(hint) else getattr(hint, '__name__', hint)}".replace("typing.", "")
            require(_is_a(fields[key], hint), f"{name}.{key}", fields[key], expected, "correct it in config.json")
    return kind(**fields)


def _bring_up_to_date(fields: dict[str, Any]) -> None:
    """Give an experiment of an older run folder the fields that have come since, as they were without them."""
    if isinstance(fields.get("allows_tf32"), bool):
        fields["precision"] = "tf32" if fields.pop("allows_tf32") else "float32"
    if fields.get("schedule") == "peek" and isinstance(fields.get("meta_parameters"), A2cLoss):
        fields.setdefault("ratio_clip", 1.0)


def _is_a(value: Any, hint: Any) -> bool:
    """Return True for a value that a field of this declared type may hold; JSON writes 1.0 as 1 at will."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_is_a(value, member) for member in get_args(hint))
    if get_origin(hint) is Callable:  # a function is no JSON
        return False
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _are(value, get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _are(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    """Return True for values that a field declared tuple[hints] may hold; the last of (X, ...) means any number."""
    if hints[1:] == (...,):
        hints = hints[:1] * len(values)
    return len(values) == len(hints) and all(map(_is_a, values, hints))


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List dotted field, old value and new value wherever two configurations differ."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [(prefix, old, new)]
    found = []
    for f in dataclasses.fields(old):
        path = f"{prefix}.{f.name}" if prefix else f.name
        found += differences(getattr(old, f.name), getattr(new, f.name), path)
    return found
