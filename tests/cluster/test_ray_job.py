import os
from pathlib import Path

import pytest

from metagrad.cluster.on_ray.job_environment import ray_job


@pytest.mark.parametrize(("entry", "is_kept_off"), [(None, True), ("", False), (".", False)])
def test_workers_import_from_the_current_folder_only_where_this_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str | None, is_kept_off: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/usr/lib", *([] if entry is None else [entry])])
    assert ray_job(is_embedded=True)["job_config"]._runtime_env_has_working_dir() is is_kept_off


def test_a_working_folder_of_the_job_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [os.getcwd()])
    job_config = ray_job(is_embedded=True)["job_config"]
    assert not job_config._runtime_env_has_working_dir()
    job_config.set_runtime_env({"working_dir": "gcs://_ray_pkg_0.zip"})
    assert job_config._runtime_env_has_working_dir()


@pytest.mark.parametrize(("is_embedded", "executable"), [(True, "'/a folder/bin/python'"), (False, None)])
def test_the_shell_in_which_ray_begins_workers_finds_a_python_below_a_name_with_a_space(
    is_embedded: bool, executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_job(is_embedded)["runtime_env"] is None  # and Ray begins them without a shell
    monkeypatch.setattr("sys.executable", "/a folder/bin/python")
    monkeypatch.setenv("METAGRAD_JOB_FOLDER", "mine")
    environment = ray_job(is_embedded)["runtime_env"]
    assert environment.get("py_executable") == executable
    assert callable(environment["worker_process_setup_hook"])
