"""A rule survives its file; anything else is refused in one line, and nothing in it is executed."""

import dataclasses
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metagrad.disco import DiscoRule
from metagrad.errors import ConfigurationError
from metagrad.lpg import Lpg
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.rule_files import RULES, decoded_rule, encoded_rule, load_rule, save_rule

RULE = ObjectiveCorrection(hidden=3, gamma=0.9)


@pytest.mark.parametrize(
    "rule", [Lpg(units=4), RULE, DiscoRule(prediction=3, largest_value=2, hidden=2, meta_hidden=2)]
)
def test_a_rule_survives_its_file(rule: Any, tmp_path: Path) -> None:
    eta = torch.randn(rule.layout.size, generator=torch.Generator().manual_seed(0))
    save_rule(tmp_path / "rule.npz", rule, eta, {"updates": 3, "families": ["chain"]})
    stored = load_rule(tmp_path / "rule.npz")
    assert stored.rule == rule
    assert torch.equal(stored.eta, eta)
    assert stored.provenance == {"updates": 3, "families": ["chain"]}
    assert set(np.load(tmp_path / "rule.npz", allow_pickle=False).files) == {"metadata", *rule.layout.names}
    assert type(rule) in RULES.values()


def changed(**arrays: Any) -> bytes:
    """The file of RULE with other arrays; None leaves one out."""
    eta = torch.zeros(RULE.layout.size)
    with np.load(io.BytesIO(encoded_rule(RULE, eta, {}))) as loaded:
        content = dict(loaded) | arrays
    written = io.BytesIO()
    np.savez(written, **{name: x for name, x in content.items() if x is not None})
    return written.getvalue()


def metadata(**changes: Any) -> Any:
    plain = {"format": 1, "rule": "objective-correction", "configuration": dataclasses.asdict(RULE), "provenance": {}}
    return np.array(json.dumps(plain | changes))


class Harmful:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a file was executed",))


def pickled() -> bytes:
    written = io.BytesIO()
    np.savez(written, metadata=np.array(Harmful(), dtype=object))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .npz file of numbers"),
        (b"PK\x03\x04 not really", "no .npz file of numbers"),
        (pickle.dumps(Harmful()), "no .npz file of numbers"),
        (pickled(), "no .npz file of numbers"),
        (changed(metadata=None), "no array 'metadata'"),
        (changed(metadata=np.array("{")), "unknown metadata"),
        (changed(metadata=metadata(format=2)), "format 2"),
        (changed(metadata=metadata(rule="sgd")), "kind 'sgd'; known are lpg"),
        (changed(metadata=metadata(configuration={"hidden": 3})), "other fields"),
        (changed(metadata=metadata(configuration=dataclasses.asdict(RULE) | {"hidden": 3.5})), "hidden = 3.5"),
        (changed(metadata=metadata(configuration=dataclasses.asdict(RULE) | {"gamma": 2.0})), "rule.gamma = 2.0"),
        (changed(metadata=metadata(configuration=dataclasses.asdict(RULE) | {"hidden": 4})), "floats [11, 4]"),
        (changed(**{"last.bias": None}), "no array 'last.bias', which objective-correction has"),
        (changed(other=np.zeros(1)), "an array 'other', which objective-correction has not"),
        (changed(**{"last.bias": np.array([0.0, np.nan])}), "not finite"),
        (changed(**{"last.bias": np.array([0, 1])}), "int64 [2] as last.bias"),
    ],
)
def test_other_files_are_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        decoded_rule(content, "rule.npz")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_weights_of_another_rule_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_rule(tmp_path / "none.npz")
    with pytest.raises(ConfigurationError, match=r"eta\.shape"):
        encoded_rule(RULE, torch.zeros(3), {})


def test_a_file_that_unpacks_to_more_than_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metagrad.rule_files._MOST_BYTES", 100)
    with pytest.raises(ConfigurationError, match="more than any rule has"):
        decoded_rule(encoded_rule(RULE, torch.zeros(RULE.layout.size), {}), "rule.npz")


def published(**arrays: Any) -> bytes:
    """A file as DiscoRL's weights were published, of other numbers; None leaves an array out."""
    layout = DiscoRule().layout
    content = {name: np.zeros(shape, np.float32) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    written = io.BytesIO()
    np.savez(written, **{name: x for name, x in (content | arrays).items() if x is not None})
    return written.getvalue()


def test_discorls_published_weights_are_known_by_their_names() -> None:
    summary = {"lstm/linear_1/b": np.array([2.5], np.float32)}
    stored = decoded_rule(published(**summary), "disco_103.npz")
    assert stored.rule == DiscoRule()
    assert stored.rule.layout.unflatten(stored.eta)["lstm/linear_1/b"].item() == 2.5
    assert stored.eta.count_nonzero() == 1
    assert "CC-BY" in stored.provenance["weights"]
    for arrays, message in (
        ({"lstm/linear_1/b": None}, "no array 'lstm/linear_1/b', which disco has"),
        ({"lstm/linear_9/b": np.zeros(1)}, "an array 'lstm/linear_9/b', which disco has not"),
        ({"lstm/linear_1/b": np.zeros(2)}, "float64 [2] as lstm/linear_1/b, and disco has floats [1]"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            decoded_rule(published(**arrays), "disco_103.npz")
