"""Holds the files of docker/ and deploy/ against each other and the project."""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from metagrad.cli.options import parse
from metagrad.cluster.launch.supervise import demand
from metagrad.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


@pytest.fixture
def read(script: Callable[[str], ModuleType]) -> Callable[[str], Any]:
    """Path of a YAML file -> its first document."""
    check = script("check")
    return lambda path: check.documents(ROOT / path)[0]


def test_every_image_of_ours_is_of_this_version_and_ray_is_the_pinned_one() -> None:
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    files = [path for folder in ("docker", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text() for path in files if "__pycache__" not in path.parts}
    images = {tag for text in texts.values() for tag in re.findall(r"\bmetagrad:([\w.]+)-(?:cpu|cuda)\b", text)}
    assert images == {PROJECT["project"]["version"]}
    assert {tag for text in texts.values() for tag in re.findall(r"rayVersion: (\S+)", text)} == {ray[1]}


def test_the_image_gets_every_package_and_what_it_gets_is_let_into_the_build() -> None:
    packages = {"metagrad", *(path.name for path in (ROOT / "metagrad").iterdir() if path.is_symlink())}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", DOCKERFILE, re.MULTILINE)]
    sources = {source for words in copied for source in words}
    assert packages <= sources
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore.index("*") < min(ignore.index(line) for line in ignore if line.startswith("!"))
    let_in = {line[1:].rstrip("/") for line in ignore if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(pattern) for pattern in let_in), source


def test_the_gpu_cluster_and_the_job_have_the_cluster_s_workers(read: Callable[[str], Any]) -> None:
    """Three copies of one thing, since each file is applied by itself."""
    own = read("deploy/kuberay/raycluster.yaml")["spec"]
    gpu = read("deploy/kuberay/raycluster-gpu.yaml")["spec"]
    job = read("deploy/kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    for other in (gpu, job):
        assert {name for name in own if own[name] != other[name]} <= {"headGroupSpec", "workerGroupSpecs"}
    assert job["headGroupSpec"] == own["headGroupSpec"]
    head, gpu_head = (spec["headGroupSpec"]["template"]["spec"]["containers"][0] for spec in (own, gpu))
    assert {name for name in head if head[name] != gpu_head[name]} == {"image", "resources"}
    assert (
        gpu["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        == (own["workerGroupSpecs"][0]["template"]["spec"]["containers"])
    )
    assert job["workerGroupSpecs"][0]["template"] == own["workerGroupSpecs"][0]["template"]


def test_the_job_finds_room_for_its_run_when_it_begins(read: Callable[[str], Any]) -> None:
    spec = read("deploy/kuberay/rayjob.yaml")["spec"]
    program, run_dir, name, *words = shlex.split(spec["entrypoint"])
    assert (program, run_dir.startswith("/runs/")) == ("metagrad-continue", True)
    default = EXPERIMENTS[name]()
    experiment = parse(type(default), words, default, name)
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    there = int(spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"])
    there += workers["minReplicas"] * int(container["resources"]["limits"]["cpu"])
    assert demand(experiment).least <= there


def test_the_time_to_go_is_longer_than_the_wait_for_checkpoints(read: Callable[[str], Any]) -> None:
    default = re.search(r"^seconds=\$\{1:-(\d+)\}$", (ROOT / "docker" / "drain.sh").read_text(), re.MULTILINE)
    assert default is not None
    services = read("docker/compose.yaml")["services"]
    for name in ("head", "worker"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > int(default[1])
    for file in ("raycluster", "raycluster-gpu"):
        pod = read(f"deploy/kuberay/{file}.yaml")["spec"]["headGroupSpec"]["template"]["spec"]
        _, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert pod["terminationGracePeriodSeconds"] > int(seconds)
        (workers,) = read(f"deploy/kuberay/{file}.yaml")["spec"]["workerGroupSpecs"]
        pod = workers["template"]["spec"]
        program, stays = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        assert pod["terminationGracePeriodSeconds"] > int(stays)


def test_a_job_that_anybody_stops_has_time_for_a_checkpoint(read: Callable[[str], Any]) -> None:
    """KubeRay stops the job of a RayJob that is deleted, and Ray kills it 3 s later unless it is told otherwise."""
    told = re.search(r"^    RAY_JOB_STOP_WAIT_TIME_S=(\d+) ", DOCKERFILE, re.MULTILINE)
    assert told is not None
    pod = read("deploy/kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["metagrad-drain", told[1]]


def test_the_operator_may_ask_the_dashboard_however_it_was_installed(script: Callable[[str], ModuleType]) -> None:
    """`app.kubernetes.io/name` is the Helm chart's alone."""
    documents = script("check").documents(ROOT / "deploy/kuberay/support.yaml")
    (policy,) = [document for document in documents if document["kind"] == "NetworkPolicy"]
    _, operator = policy["spec"]["ingress"]
    (asker,) = operator["from"]
    assert asker["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert asker["namespaceSelector"] == {}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_commands_that_the_files_call_are_in_the_image(read: Callable[[str], Any]) -> None:
    installed = set(re.findall(r"^COPY --chmod=755 \S+ /opt/metagrad/bin/(\S+)$", DOCKERFILE, re.MULTILINE))
    assert installed == {"metagrad-drain", "metagrad-ray-node"}
    assert PROJECT["project"]["scripts"].keys() == {"metagrad", "metagrad-continue"}
    assert read("docker/compose.yaml")["services"]["head"]["entrypoint"] == ["metagrad-ray-node"]
    assert "metagrad-drain" in (ROOT / "docker" / "ray_node.sh").read_text()


def test_every_extra_is_pinned_and_resolved_by_lint() -> None:
    extras = {name: packages for name, packages in PROJECT["project"]["optional-dependencies"].items() if name != "dev"}
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {package.partition("[")[0] for packages in extras.values() for package in packages} <= set(pinned)
    asked = re.search(r"^extras := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert asked is not None
    assert set(asked[1].split(",")) == extras.keys()


def test_every_package_that_is_documented_is_an_extra() -> None:
    """Whatever else a page says to install has been resolved by lint."""
    extras = PROJECT["project"]["optional-dependencies"]
    known = {package for name in extras if name != "dev" for package in extras[name]} | {
        f".[{name}]" for name in extras
    }
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docker").iterdir()]
    paths += [path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".yaml", ".sh", ".md")]
    text = "\n".join(path.read_text() for path in paths)
    named = re.findall(r'pip install (?:-c constraints\.txt )?"?([\w.\[]*\w\]?)', text)
    named += re.findall(r"--packages (\w+)", text)
    named += " ".join(re.findall(r'EXTRA_PACKAGES="([\w ]+)"', text)).split()
    assert {"s3fs", "boto3", ".[s3]", ".[aws]"} <= set(named) <= known


@pytest.mark.parametrize("file", ["aws", "local"])
def test_ray_up_refuses_an_ssh_user_who_could_not_hand_over_the_token(
    read: Callable[[str], Any], tmp_path: Path, file: str
) -> None:
    """Otherwise the head starts, and everything ends in Ray's AuthenticationError."""
    (line,) = read(f"deploy/ray-up/{file}.yaml")["initialization_commands"]
    own = re.search(r"^ARG UID=(\d+)$", DOCKERFILE, re.MULTILINE)
    assert own is not None
    for uid, code in ((own[1], 0), ("1234", 1)):
        (tmp_path / "id").write_text(f'#!/bin/sh\n[ "$1" = -u ] && echo {uid} || echo ann\n')
        (tmp_path / "id").chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", f"true && ({line})"], env=environment, capture_output=True, text=True)
        assert done.returncode == code
        said = "metagrad: ssh_user = 'ann': has uid 1234, and the token's file must be its and the image's, 1000; build"
        assert done.stderr.startswith(said) if code else done.stderr == ""


def test_no_argument_of_the_image_is_overruled() -> None:
    """A variable of the environment, also of an earlier stage, wins over a build argument of its name."""
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    variables = set(re.findall(r"^(?:ENV|   ) (\w+)=", DOCKERFILE, re.MULTILINE))
    assert {"TORCH_INDEX", "ENVPOOL_ASSETS", "UID"} <= arguments
    assert {"RAY_AUTH_MODE", "METAGRAD_TORCH_INDEX"} <= variables
    assert not arguments & variables


@pytest.mark.parametrize(
    ("uid", "gid", "is_taken"),
    [("1000", "1000", True), ("33", "20", True), ("1000", "0", True)]
    + [(uid, "1000", False) for uid in ("0", "00", "", "ann", "-1", "1 2")]
    + [("1000", gid, False) for gid in ("", "staff")],
)
def test_the_image_s_user_is_anybody_but_root(uid: str, gid: str, is_taken: bool) -> None:
    snippet = re.search(r'^RUN (case "\$UID,\$GID" .*? esac) \\$', DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert snippet is not None
    code = snippet[1].replace("$UID", "$1").replace("$GID", "$2")  # UID is bash's own, where that is sh
    done = subprocess.run(["sh", "-c", code, "sh", uid, gid], capture_output=True, text=True)
    assert done.returncode == (0 if is_taken else 1)
    assert done.stderr.startswith("" if is_taken else f"UID = '{uid}', GID = '{gid}': two numbers")


def test_lint_compiles_what_the_image_compiles() -> None:
    assert 'python -m compileall -q "$packages/metagrad"' in DOCKERFILE
    assert "python -m compileall -q metagrad $(packages)\n" in (ROOT / "Makefile").read_text()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    command = ["make", "--silent", "--no-print-directory", "--eval=named: ; @echo $(packages)", "named"]
    named = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    assert set(named.stdout.split()) == {path.name for path in (ROOT / "metagrad").iterdir() if path.is_symlink()}
