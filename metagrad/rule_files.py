"""Keeps a learnt rule in a file: numpy's .npz with its weights by name, read without executing anything.

The array "metadata" is JSON text: the kind of rule, its configuration, and where the weights come from. All other
arrays are the parts of η by the names of the rule's layout. The published weights of DiscoRL's rule, which come without
metadata, are known by their names.
"""

import dataclasses
import io
import itertools
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.disco import DiscoRule
from metagrad.disco_network import TRAJECTORY
from metagrad.errors import refusal, refusing, require
from metagrad.flat_module import ParameterLayout
from metagrad.lpg import Lpg
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.update_rules import UpdateRule

AnyRule = Lpg | ObjectiveCorrection | DiscoRule
"""A rule of a kind that files know."""

RULES: Mapping[str, type[Any]] = {"lpg": Lpg, "objective-correction": ObjectiveCorrection, "disco": DiscoRule}
"""Kinds of rules by the name that they have in files."""

_FORMAT, _METADATA = 1, "metadata"
_MOST_BYTES = 2**30  # of all arrays together, unpacked: a thousand times DiscoRL's
_PUBLISHED = {
    "weights": "DiscoRL's published ones (Oh et al. 2025, doi 10.1038/s41586-025-09761-x; Google LLC, CC-BY 4.0)",
}
_REMEDY = "give a file of a learnt rule, as meta-training writes it"


class StoredRule(NamedTuple):
    """Holds a rule with its weights, and what its file says of where they come from."""

    rule: AnyRule
    eta: Float[Tensor, "M"]
    provenance: Mapping[str, Any]


def encoded_rule(rule: UpdateRule, eta: Float[Tensor, "M"], provenance: Mapping[str, Any]) -> bytes:
    """Return the content of a rule's file; `provenance` is anything that JSON can hold.

    Raises:
        ConfigurationError: a kind of rule that has no name in files, or an η that is not this rule's.
    """
    names = {kind: name for name, kind in RULES.items()}
    rule_text, remedy = "is not a kind of rule that files know", "add it to metagrad.rule_files.RULES"
    require(type(rule) in names, "rule", type(rule).__name__, rule_text, remedy)
    size = rule.layout.size
    require(eta.shape == (size,), "eta.shape", tuple(eta.shape), f"the rule has {size} weights", "give its η")
    configuration = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    metadata = {
        "format": _FORMAT,
        "rule": names[type(rule)],
        "configuration": configuration,
        "provenance": dict(provenance),
    }
    parts = rule.layout.unflatten(eta.detach().cpu())
    content = io.BytesIO()
    arrays = {name: part.numpy() for name, part in parts.items()}
    np.savez(content, **{_METADATA: np.array(json.dumps(metadata)), **arrays})  # type: ignore[arg-type]
    return content.getvalue()


def decoded_rule(content: bytes, name: str) -> StoredRule:
    """Return the rule in a file's content; η is float32.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ConfigurationError: it is no such file, or a part of it does not fit.
    """
    arrays = _arrays(content, name)
    if _METADATA not in arrays and any(key.startswith(TRAJECTORY) for key in arrays):
        rule: AnyRule = DiscoRule()
        return StoredRule(rule, _weights(arrays, rule.layout, "disco", name), _PUBLISHED)
    require(_METADATA in arrays, "rule", name, f"has no array {_METADATA!r}, which says what rule it is", _REMEDY)
    with refusing(
        ValueError, TypeError, KeyError, field="rule", value=name, rule="has unknown metadata", remedy=_REMEDY
    ):
        metadata = json.loads(str(arrays.pop(_METADATA)[()]))
        found, kind, configuration = metadata["format"], metadata["rule"], metadata["configuration"]
        provenance = dict(metadata["provenance"])
    require(found == _FORMAT, "rule", name, f"has format {found!r}, and this is format {_FORMAT}", "update metagrad")
    is_known = isinstance(kind, str) and kind in RULES
    require(is_known, "rule", name, f"is of kind {kind!r}; known are {', '.join(RULES)}", "update metagrad")
    rule = _configured(RULES[kind], configuration, name)
    return StoredRule(rule, _weights(arrays, rule.layout, kind, name), provenance)


def _weights(arrays: Mapping[str, Any], layout: ParameterLayout, kind: str, name: str) -> Float[Tensor, "M"]:
    """Return η of arrays that are exactly those of a layout, all of them finite."""
    missing, others = (sorted(a - b) for a, b in itertools.permutations((set(layout.names), set(arrays)), 2))
    require(not missing, "rule", name, f"has no array {next(iter(missing), '')!r}, which {kind} has", _REMEDY)
    require(not others, "rule", name, f"has an array {next(iter(others), '')!r}, which {kind} has not", _REMEDY)
    parts: dict[str, Tensor] = {}
    for part, shape in zip(layout.names, layout.shapes, strict=True):
        array = arrays[part]
        given = f"{array.dtype} {list(array.shape)}"
        is_right = array.dtype in (np.float32, np.float64) and array.shape == tuple(shape)
        require(is_right, "rule", name, f"has {given} as {part}, and {kind} has floats {list(shape)}", _REMEDY)
        require(bool(np.isfinite(array).all()), "rule", name, f"has numbers in {part} that are not finite", _REMEDY)
        parts[part] = torch.from_numpy(array.astype(np.float32))
    return layout.flatten(parts)


def _arrays(content: bytes, name: str) -> dict[str, Any]:
    """Return the arrays of an .npz; nothing in it is executed."""
    bad = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError)
    with refusing(*bad, field="rule", value=name, rule="is no .npz file of numbers", remedy=_REMEDY):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        require(size <= _MOST_BYTES, "rule", name, f"unpacks to {size:,} bytes, more than any rule has", _REMEDY)
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}


def _configured(kind: type[Any], configuration: Any, name: str) -> AnyRule:
    """Return the rule of this configuration; each field must be there, with a value of its type."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    is_whole = isinstance(configuration, dict) and set(configuration) == set(defaults)
    text = f"has other fields in its configuration than {sorted(defaults)}"
    require(is_whole, "rule", name, text, "update metagrad, or " + _REMEDY)
    values: dict[str, Any] = {}
    for field, default in defaults.items():
        value = configuration[field]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = is_number if isinstance(default, float) else type(value) is type(default)
        if not fits:
            raise refusal("rule", name, f"has {field} = {value!r} in its configuration", _REMEDY)
        values[field] = float(value) if isinstance(default, float) else value
    rule: AnyRule = kind(**values)
    return rule


def save_rule(path: Path, rule: UpdateRule, eta: Float[Tensor, "M"], provenance: Mapping[str, Any]) -> None:
    """Write a rule's file."""
    path.write_bytes(encoded_rule(rule, eta, provenance))


def load_rule(path: Path) -> StoredRule:
    """Read a rule's file.

    Raises:
        ConfigurationError: it cannot be read, or is no such file.
    """
    with refusing(OSError, field="rule", value=str(path), rule="cannot be read", remedy="give another file"):
        content = path.read_bytes()
    return decoded_rule(content, str(path))
