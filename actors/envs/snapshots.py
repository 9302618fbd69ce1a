"""Checks that a snapshot fits the environment it is put back into."""

from torch import Tensor

from metagrad.errors import require


def checked_fields(snapshot: dict[str, Tensor], expected: dict[str, Tensor], environment: str) -> dict[str, Tensor]:
    """Copies of a snapshot's fields (its "generator" apart) on the device of `expected`, equal in names, types, shapes.

    Raises:
        ConfigurationError: a field is missing, unknown, or of another type or shape.
    """
    names = set(snapshot) - {"generator"}
    remedy = f"restore a snapshot of {environment} with the same configuration and batch size"
    require(names == set(expected), "snapshot", sorted(names), f"must hold {sorted(expected)}", remedy)
    for name, value in expected.items():
        shape, dtype = snapshot[name].shape, snapshot[name].dtype
        is_fitting = shape == value.shape and dtype == value.dtype
        rule = f"must be {value.dtype} of shape {tuple(value.shape)}"
        require(is_fitting, f"snapshot[{name}]", (dtype, tuple(shape)), rule, remedy)
    return {name: snapshot[name].to(value.device, copy=True) for name, value in expected.items()}
