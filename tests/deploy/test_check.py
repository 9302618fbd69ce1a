# ruff: noqa: E501 (a table)
"""Every check finds its fault; the files as they are have none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def check(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("check")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of docker/ and deploy/."""
    for name in ("docker", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_files_agree_with_their_schemas(check: ModuleType, tree: Path) -> None:
    assert list(check.all_faults(tree)) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "fault"),
    [
        ("docker/compose.yaml", "    hostname: head", "    hostnme: head", "services.head: Unevaluated properties are not"),
        ("docker/compose.yaml", "prom/prometheus:v3.5.0", "prom/prometheus", "services.prometheus.image: prom/prometheus n"),
        ("docker/compose.yaml", "${METAGRAD_BIND:-127.0.0.1}:9090", "9090", "9090:9090 is not bound to METAGRAD_BIND"),
        ("docker/compose.yaml", "    hostname: head", "    hostname: head\n    hostname: x", "'hostname' is there twice"),
        ("deploy/kuberay/raycluster.yaml", "mode: token", "mode: disabled", "spec.authOptions.mode: 'token' was expected"),
        ("deploy/kuberay/raycluster.yaml", "containerPort: 6379", "port: 6379", "Additional properties are not allowed"),
        ("deploy/kuberay/rayjob.yaml", "backoffLimit: 10", "backofLimit: 10", "spec: Additional properties are not"),
        ("deploy/kuberay/rayjob.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
        ("deploy/kuberay/support.yaml", "replicas: 1", "replicas: one", "spec.replicas: 'one' is not of type"),
        ("deploy/kuberay/support.yaml", "allowPrivilegeEscalation: false", "privileged: false", "may become root"),
        ("deploy/kuberay/support.yaml", "kind: Service\n", "kind: Servise\n", "Servise: Kubernetes has no v1 of it"),
        ("deploy/ray-up/aws.yaml", "upscaling_speed", "upscaling_sped", "top: Additional properties are not allowed"),
        ("deploy/ray-up/local.yaml", "--dashboard-host=127.0.0.1 ", "", "the dashboard is not bound to loopback"),
        ("deploy/ray-up/local.yaml", ".ray/auth_token\":", ".ray/other\":", "no token travels to the nodes"),
        ("deploy/ray-up/local.yaml", "metagrad:0.1.0-cpu", "metagrad:latest", "docker.image: REGISTRY/metagrad:latest n"),
        ("deploy/ray-up/local.yaml", "provider:", "provider: [", "while parsing a flow"),
    ],
)  # fmt: skip
def test_a_fault_is_found(check: ModuleType, tree: Path, file: str, before: str, after: str, fault: str) -> None:
    path = tree / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    found = list(check.all_faults(tree))
    assert any(line.startswith(f"{file}: ") and fault in line for line in found), found


def test_a_kind_of_file_that_is_gone_is_a_fault(check: ModuleType, tree: Path) -> None:
    shutil.rmtree(tree / "deploy/ray-up")
    assert list(check.all_faults(tree)) == ["deploy/ray-up/*.yaml: no such file"]
