import pytest
import torch

from metagrad.actors.envs.snapshots import checked_fields
from metagrad.errors import ConfigurationError

EXPECTED = {"state": torch.zeros(3, dtype=torch.int64), "clock": torch.zeros(3)}


def test_fields_come_back_as_copies_without_the_generator():
    snapshot = {"state": torch.arange(3), "clock": torch.ones(3), "generator": torch.zeros(8, dtype=torch.uint8)}
    fields = checked_fields(snapshot, EXPECTED, "Chain")
    assert list(fields) == ["state", "clock"]
    assert all(torch.equal(fields[name], snapshot[name]) for name in fields)
    snapshot["state"].zero_()
    assert fields["state"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clock": None}, r"^snapshot = \['state'\]: must hold \['clock', 'state'\]; restore a snapshot of Chain with"),
        ({"other": torch.zeros(3)}, r"^snapshot = \['clock', 'other', 'state'\]: must hold"),
        ({"state": torch.zeros(4, dtype=torch.int64)}, r"^snapshot\[state\] = .*must be torch.int64 of shape \(3,\)"),
        ({"state": torch.zeros(3)}, r"^snapshot\[state\] = "),
    ],
)
def test_snapshot_of_something_else_is_refused(changes, message):
    snapshot = {name: value for name, value in (EXPECTED | changes).items() if value is not None}
    with pytest.raises(ConfigurationError, match=message):
        checked_fields(snapshot, EXPECTED, "Chain")
