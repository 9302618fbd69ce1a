"""Names that Ray's documentation does not promise: all in one file, and missed by name."""

import ast
import re
from pathlib import Path

import pytest
import ray
from ray._private import services
from ray._private import worker as ray_worker

from metagrad.cluster.on_ray import private as ray_private
from metagrad.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def test_the_installed_ray_has_every_name() -> None:
    ray_private.require_names()
    assert ray.__version__.startswith(ray_private.TESTED)


@pytest.mark.parametrize("name", ["ray._private.worker:gone", "ray._private.gone:thing", "ray._raylet:Config.gone"])
def test_a_name_that_is_missing_is_told_with_the_release_that_has_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ray_private, "NAMES", (*ray_private.NAMES, name))
    with pytest.raises(ConfigurationError) as refusal:
        ray_private.require_names()
    message = str(refusal.value)
    assert message.startswith(f"ray = '{ray.__version__}': this release of Ray has no {name.replace(':', '.')}, which")
    assert message.endswith(f"pip install 'ray=={ray_private.TESTED}.*'")


def test_no_other_module_uses_such_names() -> None:
    private = re.compile(r"^\s*(?:from|import) ray\.(?:_|\S+\._)", re.MULTILINE)
    elsewhere = [
        str(path.relative_to(ROOT))
        for folder in ("actors", "cli", "cluster", "experiments", "learner", "metagrad")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if private.search(path.read_text())
    ]
    assert elsewhere == []


def private_uses(source: str) -> list[str]:
    """Find private names in a file: read from another object, overridden, passed as a keyword or spelt in a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if re.match("_[a-z]", name):
                found += [name] * (name not in ("_replace", "_asdict", "_fields"))  # of our own named tuples
            case ast.Constant(value=str(text)) if re.fullmatch(r"ray\._[\w.:]+", text):
                found.append(text)
    return found


def test_no_other_module_reads_a_private_name_of_an_object() -> None:
    assert private_uses("super()._a(); ray.init(_b=1); x = 'ray._c.d'; y._e; self._f; t._replace(g=1)") == [
        *("ray._c.d", "_e"), *("_a", "_b"),
    ]  # fmt: skip
    own = ("private.py", "tune_private.py")
    elsewhere = {
        path.name: found
        for path in sorted((ROOT / "cluster").rglob("*.py"))
        if path.name not in own and re.search(r"^\s*(?:from|import) ray\b", path.read_text(), re.MULTILINE)
        if (found := private_uses(path.read_text()))
    }
    assert elsewhere == {}


def test_every_replacement_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = services.get_node_ip_address, ray_worker.print_to_stdstream
    with ray_private.on_loopback(), ray_private.printing_with(print):
        assert services.get_node_ip_address() in ("127.0.0.1", "::1")
        assert services.resolve_ip_for_localhost("127.0.0.1") in ("127.0.0.1", "::1")
        assert ray_worker.print_to_stdstream is print
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "10.1.2.3")
    assert services.get_node_ip_address() == "10.1.2.3"
    assert before == (services.get_node_ip_address, ray_worker.print_to_stdstream)
