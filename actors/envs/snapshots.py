"""Checks that a snapshot fits the environment that it is put back into."""

from torch import Tensor

from metagrad.errors import require


def checked_fields(snapshot: dict[str, Tensor], expected: dict[str, Tensor], environment: str) -> dict[str, Tensor]:
    """Return copies of a snapshot's fields, without its "generator", on the device of `expected`.

    Raises:
        ConfigurationError: a field is missing or unknown, or its type or shape is not that of `expected`.
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
