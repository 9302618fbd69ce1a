"""Rules about the source itself; imports between packages are import-linter's (pyproject.toml)."""

import ast
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).parent.parent
PARTS = sorted(path.name for path in (ROOT / "metagrad").iterdir() if path.is_symlink())  # folders of the repository
PACKAGES = ("metagrad", *PARTS, "benchmarks")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CODE = [path for path in MODULES if path.name != "__init__.py"]

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

# Each entry says why. An entry that is no longer needed fails its test.
UNTESTED: dict[str, str] = {
    "benchmarks/alternatives/jax_meta_gradient.py": "in .alternatives/jax: tests/benchmarks/test_meta_gradient.py",
    "benchmarks/alternatives/torchopt_meta_gradient.py": "the same",
    "benchmarks/alternatives/jumanji_snake.py": "in .alternatives/jax: tests/benchmarks/test_environments_snake.py",
    "benchmarks/alternatives/rllib_impala.py": "in .alternatives/rllib: tests/benchmarks/test_end_to_end.py starts it",
    "benchmarks/alternatives/pong.py": "both programs below: tests/benchmarks/test_end_to_end.py starts them",
    "benchmarks/alternatives/sample_factory_appo.py": "the same, in .alternatives/sample_factory",
}
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

# A docstring that begins with one of these is a fragment more often than not.
HEADLESS = """
    As At Before Behind Beside Between Beyond By For From How In Into Not Of On Over To Under What When Where Whether
    Which Who Whose Why With Without
""".split()
VERBS = set(
    """
    am are be been can cannot could did do does had has have is may might must should was were will would abort
    absorb accept acquire act adapt add adjust admit aggregate agree aim allow anneal announce answer anticipate
    append apply approximate arrive ask assemble assert assign assume attach average balance batch begin behave
    belong bind block bootstrap bound break bring broadcast build cache call cancel carry carve catch chain change
    check choose clean clear clip close cluster collect combine come compare compile complain complete compute
    concatenate condense configure confirm conform connect construct consult consume contain continue control
    converge convert convolve copy correct cost count cover crash create cross cut cycle deal decay decide declare
    decline decode decrease define delete deliver demand denote depend deploy derive descend describe detach detect
    determine deviate dial die differ differentiate disagree discard discount discover dispatch display distribute
    divide download drain draw drive drop dump emit employ empty enable encode end enforce ensure enter enumerate
    equal erase escape estimate evaluate examine exceed exclude excuse execute exercise exhaust exist exit expand
    expect explain exponentiate export expose express extend extract fail fall feed fetch fill filter find finish
    fit fix flag flatten flow focus fold follow forget fork format free freeze fuse gather gauge generate get give
    go grant greet group grow guarantee guard guess halve hand handle happen hash hear help hide hold honour
    identify ignore implement import impose include increase index indicate infer inform inherit initialise
    initialize inject insert inspect install integrate intend interleave interpolate interpret interrupt invert
    invoke involve isolate issue iterate join journal jump keep kill know label lack launch lay lead learn leave
    lengthen let lie lift limit link list listen load lock log look loop lose lower make manage manufacture map mark
    match measure meet memorise mend mention merge migrate minimise mirror mix mock modify monitor move multiply
    mutate name need negate normalise normalize notice notify obey observe obtain occur offer omit open order
    organise outlast outlive overlap override overrule overwrite own pack pad park parse pass pay penalise perform
    permit permute persist perturb pick pickle pin place plan play plot point poll pool postpone predict prepare
    preserve press prevent preview price print probe process produce project promise promote propagate protect
    provide prune publish pull push put query queue quit quote race raise rank reach react read rebind rebuild
    receive recognise recompute reconnect record recover recur redirect reduce refer reflect refuse regress
    regularise reject relate relay release rely remember remove rename render reorder repair replace replay reply
    report represent request require resample rescale resemble reserve reset reshape resolve resort respect respond
    rest restart restore resume retain retire retrieve retry return reuse reveal reverse review rewind rewrite roll
    rotate round route run sample satisfy save say scale scan schedule score seal search see seed seek seem select
    send separate serialise serve set settle shape share shift shorten show shrink shuffle shut signal simulate sit
    size skip sleep slice slow smooth solve sort spawn speak specify split spread square stack stand standardise
    start stay steer step stitch stop store stream strip subclass submit subtract suit sum summarise summarize
    supervise supply support suppose suppress survive swap switch tabulate tag take teach tear tell tend terminate
    test tie time touch trace track train transfer transform translate travel treat trigger trim truncate trust try
    tune turn type understand unflatten unpack unwrap update upload use validate vanish vary verify view visit wait
    wake walk want warn waste watch weigh widen withdraw work wrap write yield zero zip
    """.split()
)
# Nouns in the middle of a sentence, as far as a word alone can tell; verbs where the sentence begins with them.
NOUNS_TOO = set(
    """
    aim answer average balance batch block bootstrap bound cache call chain change check clean clear close cluster
    control copy correct cost count cut cycle deal discount display draw drive dump empty end estimate exercise exit
    filter find fit fix flag flow focus fork format free gauge go group guess hand hash help index issue jump label
    launch lay lead limit link list lock log look loop lower map mark match measure mix mock monitor move name need
    offer open order own park pass pick pin place plan play plot point poll pool press price print probe process
    project promise query queue race rank record reply report request reserve reset rest retry return reverse review
    roll round route run sample say scale schedule score seal search seed separate set shape share shift show shut
    signal size slice slow smooth sort split spread square stack stand start step stop store stream strip subclass
    sum support swap switch tag tear test tie time touch trace track train transfer travel trust try turn type
    update use view visit wait walk waste watch work zero zip
    """.split()
)
CLAUSE = {"that", "which", "who", "it", "they", "one", "to", "not", "never"}  # what follows is a verb, noun or not


def syntax(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def dotted(path: Path) -> str:
    """Under which name a module is imported: learner/schedule.py is metagrad.learner.schedule."""
    parts = path.with_suffix("").parts
    return ".".join(parts if parts[0] in ("metagrad", "benchmarks") else ("metagrad", *parts))


def named_by_tests() -> set[str]:
    """Modules that some test imports, and those that its text names: to patch them, or to run them in a process."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r"\b(?:metagrad|benchmarks)(?:\.\w+)+", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                names.update(f"{node.module}.{each.name}" for each in node.names)
    return names


NAMED_BY_TESTS = named_by_tests()


@pytest.mark.parametrize("path", CODE, ids=str)
def test_every_module_is_tested(path: Path) -> None:
    has_tests = dotted(path) in NAMED_BY_TESTS
    is_excused = path.as_posix() in UNTESTED
    assert has_tests or is_excused, f"no test imports or names {dotted(path)}"
    assert not (has_tests and is_excused), f"{path} is tested now: remove it from UNTESTED"


def public_definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in syntax(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", CODE, ids=str)
def test_every_module_and_public_name_has_a_docstring(path: Path) -> None:
    missing = [f"{path}:{node.lineno} {node.name}" for node in public_definitions(path) if not ast.get_docstring(node)]
    if not ast.get_docstring(syntax(path)):
        missing.insert(0, f"{path}:1 (module)")
    assert not missing, f"no docstring: {', '.join(missing)}"


def stems(word: str) -> set[str]:
    return {word, *(re.sub(end, "", word) for end in ("s$", "es$", "n't$")), re.sub("ies$", "y", word)}


def is_headless(docstring: str) -> bool:
    """True where the first sentence has no verb, as far as its words tell: no parser, and few false alarms."""
    sentence = re.split(r"(?<=[.;?!])\s|:\n\n", docstring.strip(), maxsplit=1)[0]
    words = re.findall(r"[^\W\d_]+(?:n't)?", sentence)
    if not words or words[0] in HEADLESS or sentence.startswith(("All that", "The same")):
        return True
    is_compound = sentence[len(words[0]) :].startswith("-")  # "Score-function estimators"
    begins_with_verb = not is_compound and stems(words[0].lower()) & VERBS and words[1:2] != ["of"]
    has_verb = any(
        stems(word) & VERBS and (not stems(word) & NOUNS_TOO or before in CLAUSE or words[0] == "True")
        for before, word in itertools.pairwise(words)
    )
    is_formula = re.search(r"\s[=≤≥<>∈≈]\s", sentence)
    return not (begins_with_verb or has_verb or is_formula)


def headless(path: Path) -> list[str]:
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(syntax(path)) if isinstance(node, described) and ast.get_docstring(node)]
    return [f"{path}:{getattr(node, 'lineno', 1)}" for node in nodes if is_headless(ast.get_docstring(node) or "")]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the mean over games.", False),
        ("The mean over games is exact.", False),
        ("A rollout that crosses processes.", False),
        ("θ' = θ - α g.", False),
        ("True where the actor waits.", False),
        ("Mean over games of the returns.", True),
        ("Of every rollout since the last row: its lag.", True),
        ("What the learner is told.", True),
        ("One update.\n\nIt is real.", True),
    ],
)
def test_a_sentence_has_a_verb(docstring: str, expected: bool) -> None:
    assert is_headless(docstring) == expected


@pytest.mark.parametrize("folder", [*PACKAGES, "examples"])
def test_every_docstring_is_a_sentence_with_a_verb(folder: str) -> None:
    found = [line for path in sorted((ROOT / folder).rglob("*.py")) for line in headless(path.relative_to(ROOT))]
    assert not found, "no verb in the first sentence (or one that VERBS lacks): " + ", ".join(found)


@pytest.mark.parametrize("path", CODE, ids=str)
def test_files_stay_within_their_budget(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    is_excused = path.as_posix() in LONG_FILES
    assert lines <= MAX_FILE_LINES or is_excused, f"{path} has {lines} lines, more than {MAX_FILE_LINES}: split it"
    assert lines > MAX_FILE_LINES or not is_excused, f"{path} has {lines} lines: remove it from LONG_FILES"


@pytest.mark.parametrize("path", CODE, ids=str)
def test_functions_stay_within_their_budget(path: Path) -> None:
    long = {}
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            if lines > MAX_FUNCTION_LINES:
                long[f"{path.as_posix()}:{node.name}"] = lines
    excused = {name for name in LONG_FUNCTIONS if name.startswith(f"{path.as_posix()}:")}
    too_long = {name: lines for name, lines in long.items() if name not in excused}
    assert not too_long, f"more than {MAX_FUNCTION_LINES} lines without the docstring: {too_long}: split them"
    assert not excused - set(long), f"short now: remove from LONG_FUNCTIONS {sorted(excused - set(long))}"


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    has_docstring = ast.get_docstring(node) is not None
    return (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0


@pytest.mark.parametrize("allowance", [UNTESTED, LONG_FILES, LONG_FUNCTIONS])
def test_allowances_name_existing_files(allowance: dict[str, str]) -> None:
    gone = [name for name in allowance if not (ROOT / name.split(":")[0]).is_file()]
    assert not gone, f"no such file: {gone}"


def test_every_code_folder_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    missing = [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()]
    assert not missing, f"no __init__.py in {missing}: import-linter and the wheel would leave the folder out"


@pytest.mark.parametrize("folder", ["tests", "docker", "deploy", "docs"])
def test_other_folders_are_not_packages(folder: str) -> None:
    found = [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("__init__.py")]
    assert not found, f"remove {found}: the folder would shadow the package of the same name"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_imported_as_one_of_metagrad(part: str) -> None:
    """No top-level name of ours but `metagrad` can meet a user's file or another package."""
    link = ROOT / "metagrad" / part
    assert link.is_symlink()
    assert link.readlink() == Path("..", part)


def test_the_image_holds_every_part_and_no_other_folder() -> None:
    """Docker cannot loop over COPY, so docker/Dockerfile and .dockerignore repeat what metagrad/ links to."""
    folders = {"metagrad", *PARTS}
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert set(copied) == folders
    kept = re.findall(r"^!(\w+)/$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(kept) == folders


def test_the_library_is_checked_at_run_time() -> None:
    from metagrad.returns import lambda_returns

    flat = torch.zeros(3)
    with pytest.raises(jaxtyping.TypeCheckError, match="reward"):
        lambda_returns(flat, flat, flat > 0, flat > 0, 0.9, 0.9)


def is_declaration(node: ast.AST) -> bool:
    """True for what only says that others will have something: its body is no reader of anything."""
    if isinstance(node, ast.ClassDef):
        return any("Protocol" in ast.unparse(base) for base in node.bases)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return is_function and any(ast.unparse(each).endswith("abstractmethod") for each in node.decorator_list)


def names_read(trees: Iterable[ast.AST]) -> set[str]:
    """Attributes that some code reads, validation of the configuration (`__post_init__`) apart, and constant keys.

    Not those that are called: no configuration field is a function, but `optimizer.update(…)` would read an `update`.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_declaration(node) or (isinstance(node, ast.FunctionDef) and node.name == "__post_init__"):
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            for child in (node.func.value, *node.args, *node.keywords):
                visit(child)
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        if isinstance(node, ast.MatchClass):
            names.update(node.kwd_attrs)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Load):
            names.add(str(node.slice.value))  # a hyper-parameter is read from η by its name
        for child in ast.iter_child_nodes(node):
            visit(child)

    for tree in trees:
        visit(tree)
    return names


def test_a_read_is_a_read_and_nothing_else() -> None:
    source = """
class Config(ABC):
    def __post_init__(self): require(self.checked)
    @abstractmethod
    def length(self): return self.abstract
    @property
    def double(self): return 2 * self.used
class Loop(Protocol):
    def run(self): return self.protocol
def f(config, hyper):
    config.called(config.argument)
    config.stored = hyper["gamma"]
    match config:
        case Config(matched=1): pass
"""
    assert names_read([ast.parse(source)]) == {"used", "argument", "gamma", "matched"}


def test_every_configuration_field_has_a_reader() -> None:
    from metagrad import experiments  # and with it every file of ours that defines a configuration
    from metagrad.cluster.config.json_form import config_types

    kinds = [kind for kind in config_types().values() if kind.__module__.startswith("metagrad.")]
    assert {type(make()) for make in experiments.EXPERIMENTS.values()} <= set(kinds)
    read = names_read(map(syntax, CODE))
    unread = sorted(
        f"{kind.__module__}.{kind.__name__}.{field.name}"
        for kind in kinds
        for field in dataclasses.fields(kind)
        if field.name.rstrip("_") not in read and field.name not in read
    )
    assert not unread, f"configured, checked perhaps, and read by nothing: {unread}"
