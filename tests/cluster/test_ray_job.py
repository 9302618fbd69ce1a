import os
from pathlib import Path

import pytest

from metagrad.cluster.ray_job import ray_job


@pytest.mark.parametrize(("entry", "is_kept_off"), [(None, True), ("", False), (".", False)])
def test_workers_import_from_the_current_folder_only_where_this_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str | None, is_kept_off: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/usr/lib", *([] if entry is None else [entry])])
    assert ray_job()["job_config"]._runtime_env_has_working_dir() is is_kept_off


def test_a_working_folder_of_the_job_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [os.getcwd()])
    job_config = ray_job()["job_config"]
    assert not job_config._runtime_env_has_working_dir()
    job_config.set_runtime_env({"working_dir": "gcs://_ray_pkg_0.zip"})
    assert job_config._runtime_env_has_working_dir()
