"""Check the files of docker/ and deploy/ against their schemas: `python deploy/check.py`, a part of `make lint`.

Prints one line per fault, with file and place, and exits with 1 if there is any. deploy/schemas/README.md lists the
schema of each kind of file.
"""

import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parent.parent
_KUBERNETES = "v1.36.0-local-strict"  # the newest in kubernetes-validate that refuses unknown fields
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
_IMAGE = re.compile(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?")  # a tag with a version in it


class _Loader(yaml.SafeLoader):
    """Loads YAML and refuses duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    names = [loader.construct_object(key) for key in own]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def documents(path: Path) -> list[Any]:
    """Load the documents of a YAML file."""
    with path.open(encoding="utf-8") as file:
        return [each for each in yaml.load_all(file, _Loader) if each is not None]


def _kubernetes(name: str) -> dict[str, Any] | None:
    place = files("kubernetes_validate") / "kubernetes-json-schema" / _KUBERNETES / name
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None


@functools.cache
def _registry() -> Registry[Any]:
    """Return Kubernetes' definitions, also under the address at which our schema of KubeRay's objects expects them."""
    definitions = Resource.from_contents(_kubernetes("_definitions.json"))
    pod = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return Registry().with_resources(
        [
            (_DEFINITIONS, definitions),
            ("https://metagrad.invalid/api/_definitions.json", definitions),
            ("https://kubernetes.io/api/podtemplatespec/v1", Resource.from_contents(dialect | pod)),
        ]
    )


def _faults(document: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft7Validator)
    for error in kind(schema, registry=_registry()).iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message[:200]}"


def compose_faults(document: Any) -> Iterator[str]:
    """Check a compose file: the specification's schema, versions of images, ports that are open to the network."""
    place = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    yield from _faults(document, json.loads(place.read_text(encoding="utf-8")))
    for name, service in document.get("services", {}).items():
        yield from _image_fault(f"services.{name}", service)
        for port in service.get("ports", []):
            if not str(port).startswith("${METAGRAD_BIND:-127.0.0.1}:"):
                yield f"services.{name}.ports: {port} is not bound to METAGRAD_BIND, loopback unless asked"


def kubernetes_faults(document: Any) -> Iterator[str]:
    """Check an object for Kubernetes: its schema, versions of images, containers that may be root."""
    if document.get("apiVersion") == "ray.io/v1":
        own = ROOT / "deploy/schemas/ray.io_v1.json"
        yield from _faults(document, json.loads(own.read_text(encoding="utf-8")))
    else:
        group, _, version = document["apiVersion"].rpartition("/")
        name = "-".join(x for x in (document["kind"].lower(), group.partition(".")[0], version) if x)
        schema = _kubernetes(f"{name}.json")
        if schema is None:
            yield f"{document['kind']}: Kubernetes has no {document['apiVersion']} of it"
            return
        yield from _faults(document, schema)
    for place, pod in _pods(document, document.get("kind", "")):
        for container in pod["containers"]:
            yield from _image_fault(f"{place}.{container['name']}", container)
            if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
                yield f"{place}.{container['name']}: may become root"
        if pod.get("securityContext", {}).get("runAsNonRoot") is not True:
            yield f"{place}: may run as root"


def _pods(tree: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if "containers" in tree:
            yield place, tree
        for name, entry in tree.items():
            yield from _pods(entry, f"{place}.{name}")
    elif isinstance(tree, list):
        for index, entry in enumerate(tree):
            yield from _pods(entry, f"{place}.{index}")


def ray_up_faults(document: Any) -> Iterator[str]:
    """Check a cluster for `ray up`: Ray's own schema, its token, a dashboard that is open to the network."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    yield from _faults(document, schema)
    yield from _image_fault("docker", document.get("docker", {}))
    if not any(place.endswith(".ray/auth_token") for place in document.get("file_mounts", {})):
        yield "file_mounts: no token travels to the nodes"
    for command in document.get("head_start_ray_commands", []):
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            yield "head_start_ray_commands: the dashboard is not bound to loopback"


def _image_fault(place: str, holder: Mapping[str, Any]) -> Iterator[str]:
    image = holder.get("image")
    if image is not None and not _IMAGE.fullmatch(str(image)):
        yield f"{place}.image: {image} names no version"


CHECKS = {
    "docker/compose*.yaml": compose_faults,
    "deploy/kuberay/*.yaml": kubernetes_faults,
    "deploy/ray-up/*.yaml": ray_up_faults,
}


def all_faults(root: Path) -> Iterator[str]:
    """Check every file that a row of `CHECKS` names, and yield one line per fault."""
    for pattern, check in CHECKS.items():
        paths = sorted(root.glob(pattern))
        if not paths:
            yield f"{pattern}: no such file"
        for path in paths:
            name = path.relative_to(root)
            try:
                for document in documents(path):
                    yield from (f"{name}: {fault}" for fault in check(document))
            except yaml.YAMLError as error:
                yield f"{name}: {' '.join(str(error).split())}"


def main() -> int:
    """Print the faults and return the exit code: 1 if there is any."""
    faults = list(all_faults(ROOT))
    print("\n".join(faults) or f"{len(CHECKS)} kinds of files agree with their schemas")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
