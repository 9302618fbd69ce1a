"""Cores that a process may use, on made-up control groups of both versions."""

import os
from pathlib import Path

import pytest

from metagrad.cores import default_threads, usable_cores

V1_MOUNT = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct ro,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup ro,nosuid,nodev - cgroup2 cgroup rw,nsdelegate"
OTHERS = """\
22 1 0:20 / /proc rw,relatime - proc proc rw
36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
30 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
"""


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root with /proc/self and, below /sys/fs/cgroup, these files."""
    held = {"proc/self/cgroup": groups, "proc/self/mountinfo": OTHERS + mounts}
    for name, text in (held | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip() + "\n")
    return root


def v1(root: Path, groups: str, mounted: str, quotas: dict[str, int]) -> Path:
    """Version 1, quotas in microseconds of 100 ms by group, "." for the mount's root."""
    files = {f"cpu,cpuacct/{group}/cpu.cfs_quota_us": str(quota) for group, quota in quotas.items()}
    files |= {f"cpu,cpuacct/{group}/cpu.cfs_period_us": "100000" for group in quotas}
    return machine(root, groups, V1_MOUNT.format(root=mounted), files)


def v2(root: Path, path: str, limits: dict[str, str]) -> Path:
    """Version 2, `cpu.max` by group, "." for the mount's root."""
    files = {f"{group}/cpu.max": limit for group, limit in limits.items()}
    return machine(root, f"0::{path}\n", V2_MOUNT.format(root="/"), files)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("390000 100000", 3), ("20000 10000", 2)],
)
def test_version_2_in_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path, limit: str, cores: int) -> None:
    assert usable_cores(v2(tmp_path, "/", {".": limit})) == cores


def test_version_2_asks_every_group_above(tmp_path: Path) -> None:
    inner = v2(tmp_path / "a", "/pod/main", {"pod": "400000 100000", "pod/main": "300000 100000"})
    assert usable_cores(inner) == 3
    outer = v2(tmp_path / "b", "/pod/main", {"pod": "200000 100000", "pod/main": "max 100000"})
    assert usable_cores(outer) == 2
    sibling = v2(tmp_path / "c", "/pod/main", {"pod": "max 100000", "pod/other": "200000 100000"})
    assert usable_cores(sibling) == 64


def test_of_a_group_outside_of_the_mount_the_mount_itself_is_asked(tmp_path: Path) -> None:
    limits = {"../neighbour": "100000 100000", ".": "200000 100000"}
    assert usable_cores(v2(tmp_path / "a", "/../neighbour", limits)) == 2
    assert usable_cores(v1(tmp_path / "b", "4:cpu,cpuacct:/elsewhere\n", "/docker/abc", {".": 300_000})) == 3


@pytest.mark.parametrize(("quota", "cores"), [(200_000, 2), (150_000, 1), (10_000, 1), (100_000_000, 64)])
def test_version_1_with_the_path_from_outside_of_the_container(tmp_path: Path, quota: int, cores: int) -> None:
    groups = "11:cpuset:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n"
    assert usable_cores(v1(tmp_path, groups, "/docker/abc", {".": quota})) == cores


def test_version_1_asks_every_group_above_and_minus_one_is_no_quota(tmp_path: Path) -> None:
    groups = "4:cpu,cpuacct:/job/step\n"
    quotas = {".": -1, "job": 300_000, "job/step": 500_000}
    assert usable_cores(v1(tmp_path / "a", groups, "/", quotas)) == 3
    assert usable_cores(v1(tmp_path / "b", groups, "/", quotas | {"job": -1})) == 5


def test_both_versions_at_once(tmp_path: Path) -> None:
    root = v1(tmp_path, "4:cpu,cpuacct:/job\n0::/unified\n", "/", {"job": 400_000})
    with (root / "proc/self/mountinfo").open("a") as mounts:
        mounts.write("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n")
    assert usable_cores(root) == 4


def test_without_control_groups_it_is_the_affinity_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path) == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cores(tmp_path) == 1
    assert usable_cores(v2(tmp_path / "quota", "/pod", {"pod": "200000 100000"})) == 1


@pytest.mark.parametrize(
    ("value", "threads"), [(None, 64), ("", 64), ("3", 3), ("3,1", 3), ("100", 64), ("0", 64), ("many", 64), ("-1", 64)]
)
def test_threads_are_at_most_what_openmp_was_told(
    value: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metagrad.cores._quotas", lambda _root: iter(()))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == threads


def test_threads_are_at_most_what_the_quota_pays_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metagrad.cores._quotas", lambda _root: iter([2.5]))
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert default_threads() == 2
