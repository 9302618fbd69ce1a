"""Files of users with environments, losses, experiments and studies of their own: `metagrad --import FILE.py`."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from metagrad.cluster.config_json import config_types
from metagrad.errors import require

T = TypeVar("T")
_PREFIX = "metagrad_extension_"  # keeps the file's name from standing in for a package of the same name


def load_extension(path: Path) -> ModuleType:
    """Import a file; the classes in it are known from then on, by `config.json` too.

    Raises:
        ConfigurationError: no such Python file, one of that name has been imported, or a configuration in it is called
            as another one.
    """
    require(path.suffix == ".py", "import", str(path), "must be a Python file", "name one that ends in .py")
    require(path.is_file(), "import", str(path), "no such file", "check the path")
    name = _PREFIX + path.stem
    rule, remedy = "a file of that name has been imported", "give each file once, under names that differ"
    require(name not in sys.modules, "import", str(path), rule, remedy)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        config_types()  # refuses two of a name now rather than when a run's config.json is read
    except BaseException:
        del sys.modules[name]
        raise
    return module


def extensions() -> list[ModuleType]:
    """The files imported so far. Other processes cannot import them by name: what is of them travels by value."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX)]


def with_extensions(table: Mapping[str, T], attribute: str) -> dict[str, T]:
    """A table of ours and those that extensions have under the same attribute, `EXPERIMENTS` or `STUDIES`.

    Raises:
        ConfigurationError: a name that is taken.
    """
    merged: dict[str, Any] = dict(table)
    for module in extensions():
        for name, entry in getattr(module, attribute, {}).items():
            rule, remedy = f"is a name in {attribute} already", "choose another name"
            require(name not in merged, str(module.__file__), name, rule, remedy)
            merged[name] = entry
    return merged
