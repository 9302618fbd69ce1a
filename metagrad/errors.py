"""The one error a person's input can raise."""

from typing import Any


class ConfigurationError(ValueError):
    """A wrong name, value or combination, refused before anything starts."""


def require(condition: bool, field: str, value: Any, rule: str, remedy: str) -> None:
    """Raise `ConfigurationError` in one line (field, value, rule, remedy) unless `condition` holds."""
    if not condition:
        raise ConfigurationError(f"{field} = {value!r}: {rule}; {remedy}")
