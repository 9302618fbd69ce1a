"""Import files of users with environments, losses, experiments and studies of their own: `metagrad --import FILE.py`.

Such a file may import modules that lie beside it. They and the file itself are found here by their names, and nothing
else of that folder is: it is never put on Python's path. Ray's workers find them likewise, from the text that was read
here (`known`), so no other machine needs the files.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import config_types
from metagrad.errors import ConfigurationError, require

T = TypeVar("T")
_PREFIX = "metagrad_extension_"  # keeps the file's name from standing in for a package of the same name
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class _Source(NamedTuple):
    path: str
    text: bytes
    is_package: bool


class _Loader(SourceLoader):
    """Runs a text that has been read already; nothing is cached beside the user's file."""

    def __init__(self, source: _Source):
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._source.path

    def get_data(self, path: str) -> bytes:
        if path != self._source.path:
            raise FileNotFoundError(path)
        return self._source.text


class _AliasLoader(importlib.abc.Loader):
    """Loads the one module of a file that is known by two names."""

    def __init__(self, name: str):
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


class _Finder(MetaPathFinder):
    """Finds users' modules by name. It comes first, so that every process of a run finds the same ones."""

    def __init__(self) -> None:
        self.sources: dict[str, _Source] = {}
        self.aliases: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name := self.aliases.get(fullname):
            return importlib.util.spec_from_loader(fullname, _AliasLoader(name))
        source = self.sources.get(fullname)
        if source is None:
            return None
        folder = [str(Path(source.path).parent)] if source.is_package else None
        return importlib.util.spec_from_file_location(
            fullname, source.path, loader=_Loader(source), submodule_search_locations=folder
        )

    def add(self, name: str, source: _Source) -> None:
        """Add a file under a name; if it is known by another name already, it keeps its one module."""
        same = next((known for known, each in self.sources.items() if each.path == source.path), None)
        if same in (None, name):
            self.sources[name] = source
        else:
            self.aliases[name] = str(same)

    def install(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)


_FINDER = _Finder()


def load_extension(path: Path) -> ModuleType:
    """Import a file; the classes in it are known from then on, by `config.json` too.

    Raises:
        ConfigurationError: no such Python file, one of that name has been imported, it fails, or a configuration in it
            is called as another one.
    """
    require(path.suffix == ".py", "import", str(path), "must be a Python file", "name one that ends in .py")
    require(_is_file(path), "import", str(path), "no such file", "check the path")
    name = _PREFIX + re.sub(r"\W", "_", path.stem)
    rule, remedy = "a file of that name has been imported", "give each file once, under names that differ"
    require(name not in sys.modules, "import", str(path), rule, remedy)
    before = dict(_FINDER.sources), dict(_FINDER.aliases), set(sys.modules)
    try:
        _FINDER.install()
        _FINDER.add(name, _Source(str(path.resolve()), path.read_bytes(), is_package=False))
        for module, source in _beside(path):
            _FINDER.add(module, source)
        loaded = importlib.import_module(name)
        config_types()  # refuses two of a name now rather than when a run's config.json is read
    except BaseException as error:
        known = {*_FINDER.sources, *_FINDER.aliases} - {*before[0], *before[1]}
        refusal = _refusal(f"import = {str(path)!r}", error)
        _FINDER.sources, _FINDER.aliases = before[0], before[1]
        for each in known - before[2]:
            sys.modules.pop(each, None)
        if refusal is None:
            raise
        raise refusal from error
    return loaded


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a folder that is closed
        return False


def extensions() -> list[ModuleType]:
    """Return the files imported so far."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX)]


def files_of(module: ModuleType) -> list[Path]:
    """Return an imported file, and those beside it that it imports, directly or not."""
    own = Path(str(module.__file__))
    beside = [Path(source.path) for _, source in _beside(own)]
    return [own, *filter(_is_file, beside)]


def _beside(file: Path) -> list[tuple[str, _Source]]:
    """Find the modules that a file imports, directly or not, from the folder in which it lies.

    A name that Python or an installed package has means that one, as anywhere else: a `random.py` or `torch.py` that
    happens to lie there takes nobody's place.
    """
    found: dict[str, _Source] = {}
    waiting = [file.resolve().read_bytes()]
    seen: set[str] = set()
    while waiting:
        for name in sorted(_imported(waiting.pop()) - seen):
            seen.add(name)
            modules = dict(_modules(file.resolve().parent, name))
            if not modules or _is_elsewhere(name, modules):
                continue
            for module, source in modules.items():
                known = _FINDER.sources.get(module, source)
                rule, remedy = f"imports {name}, and another file of that name has been imported", "rename one of them"
                require(known.path == source.path, "import", str(file), rule, remedy)
            found |= modules
            waiting += [source.text for source in modules.values()]
    return list(found.items())


def _imported(text: bytes) -> set[str]:
    """Return the top-level names of the modules that a source imports anywhere, in its functions too."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):  # it says so when it is imported
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")]
    names |= {str(x.value) for call in calls for x in call.args[:1] if isinstance(x, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def _modules(folder: Path, name: str) -> Iterator[tuple[str, _Source]]:
    """Yield a module, or a package with all that is in it, by name."""
    package = folder / name
    files = sorted(package.rglob("*.py")) if package.is_dir() else []
    if files:
        start = package / "__init__.py"
        yield name, _Source(str(start), start.read_bytes() if start.is_file() else b"", is_package=True)
        for file in files:
            place = file.relative_to(folder).with_suffix("")
            is_package = place.name == "__init__"
            module = ".".join((place.parent if is_package else place).parts)
            if module != name:
                yield module, _Source(str(file), file.read_bytes(), is_package)
    elif _is_file(file := folder / f"{name}.py"):
        yield name, _Source(str(file), file.read_bytes(), is_package=False)


def _is_elsewhere(name: str, modules: Mapping[str, _Source]) -> bool:
    """True for a name of Python's or of an installed package's."""
    if name in sys.stdlib_module_names:
        return True
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if finder is not _FINDER)
    origins = [spec.origin for spec in specs if spec is not None and spec.loader is not None]
    return bool(origins) and str(origins[0]) != modules[name].path


class Known(NamedTuple):
    """Holds what another process needs to import the same files."""

    sources: dict[str, _Source]
    aliases: dict[str, str]


def known() -> Known:
    """Return all that can be imported by name here."""
    return Known(dict(_FINDER.sources), dict(_FINDER.aliases))


def learn(given: Known) -> None:
    """Make importable, in another process, what `known` lists of the first."""
    _FINDER.sources, _FINDER.aliases = given
    _FINDER.install()


def with_extensions(table: Mapping[str, T], attribute: str, is_entry: Callable[[Any], bool]) -> dict[str, T]:
    """Merge a table of ours with those that extensions have under the same attribute, `EXPERIMENTS` or `STUDIES`.

    Raises:
        ConfigurationError: a table that is none, an entry of another type, or a name that is taken.
    """
    merged: dict[str, Any] = dict(table)
    for module in extensions():
        own = getattr(module, attribute, {})
        file = str(module.__file__)
        remedy = "see docs/extending.md"
        require(isinstance(own, Mapping), f"{file} {attribute}", own, "must be a dictionary of names", remedy)
        for name, entry in own.items():
            is_name = isinstance(name, str) and bool(_NAME.fullmatch(name))
            rule = "must be a name of letters, digits, dots, dashes and underscores"
            require(is_name, f"{file} {attribute}", name, rule, "rename it")
            wanted = "a function that returns an experiment" if attribute == "EXPERIMENTS" else "a Study"
            require(is_entry(entry), f"{file} {attribute}[{name!r}]", entry, f"must be {wanted}", remedy)
            rule, remedy_for_name = f"is a name in {attribute} already", "choose another name"
            require(name not in merged, file, name, rule, remedy_for_name)
            merged[name] = entry
    return merged


def made(name: str, make: Callable[[], Any]) -> BaseExperiment:
    """Make the experiment of this name in a table.

    Raises:
        ConfigurationError: a function of a user's file fails, or returns something else.
    """
    field = f"EXPERIMENTS[{name!r}]"
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise ConfigurationError(f"{field}: must be callable without arguments; see docs/extending.md") from error
    try:
        experiment = make()
    except Exception as error:
        refusal = _refusal(field, error) if _user_line(error) else None
        if refusal is None:
            raise
        raise refusal from error
    is_one = isinstance(experiment, BaseExperiment)
    require(is_one, field, experiment, "must return an experiment", "see docs/extending.md")
    rule, remedy = f"is called {name!r} in the table", "give it the same name"
    require(experiment.name == name, f"{field}().name", experiment.name, rule, remedy)
    return experiment


def _refusal(field: str, error: BaseException) -> ConfigurationError | None:
    """Describe in one line what a user's file raised; None if the file did not cause it."""
    where = _user_line(error)
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{field}: {where}: {error}") if where else None
    if not isinstance(error, Exception | SystemExit):
        return None
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())[:300]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ConfigurationError(f"{field}: {f'{where}: ' if where else ''}{said}; correct the file")


def _user_line(error: BaseException) -> str:
    """Return the last line of a user's file that led to an error; empty if none did."""
    files = {source.path for source in _FINDER.sources.values()}
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"line {error.lineno} of {Path(error.filename).name}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
