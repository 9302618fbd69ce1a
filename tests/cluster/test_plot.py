import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from metagrad.cluster.run import plot
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.plot import group_runs, join, plot_runs, read_scalars
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.storage import RemotePath, write_whole


def write_run(folder, seed, critic="outer", offset=0.0):
    experiment = EXPERIMENTS["snake-6x6"]()
    experiment = replace(experiment, seed=seed, outer=replace(experiment.outer, critic=critic))
    RunFolder(folder).open_new(experiment)
    with SummaryWriter(str(folder)) as writer:
        for update in (10, 20, 30):
            writer.add_scalar("episode/return_mean", update + offset, update)
            writer.add_scalar("eta/gamma", 0.8 + update / 1000, update)
            writer.add_scalar("eta/lambda", 0.95, update)
            writer.add_scalar("loss/inner", 1.0, update)
    return folder


def test_runs_that_differ_in_their_seed_share_a_line_and_others_are_named_by_what_differs(tmp_path):
    runs = [write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2), write_run(tmp_path / "c", 1, critic="inner")]
    assert group_runs(runs) == {
        "snake-6x6, outer.critic = outer": runs[:2],
        "snake-6x6, outer.critic = inner": runs[2:],
    }


def test_only_the_return_and_what_moved_is_read(tmp_path):
    scalars = read_scalars(write_run(tmp_path / "a", 1))
    assert set(scalars) == {"episode/return_mean", "eta/gamma"}
    np.testing.assert_array_equal(scalars["episode/return_mean"], [[10, 20, 30], [10, 20, 30]])


def test_a_curve_is_the_mean_where_all_runs_have_a_value_with_the_spread_over_runs():
    runs = [(np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0])), (np.array([20, 30, 40]), np.array([4.0, 7.0, 9.0]))]
    curve = join(runs)
    np.testing.assert_array_equal(curve.updates, [20, 30])
    np.testing.assert_allclose(curve.mean, [3.0, 5.0])
    np.testing.assert_allclose(curve.std, [np.sqrt(2.0), np.sqrt(8.0)])
    assert curve.runs == 2
    assert join([]) is None
    assert join([(np.array([1]), np.array([1.0])), (np.array([2]), np.array([1.0]))]) is None


def test_runs_at_urls_are_read_like_those_on_paths(tmp_path):
    paths = [write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2)]
    urls = [RemotePath(f"memory://{path}") for path in paths]
    for path, url in zip(paths, urls, strict=True):
        for file in path.iterdir():
            write_whole(url / file.name, file.read_bytes())
    assert group_runs(list(map(str, urls))) == {"snake-6x6": urls}
    for path, url in zip(paths, urls, strict=True):
        there, here = read_scalars(url), read_scalars(path)
        assert there.keys() == here.keys()
        for name in here:
            np.testing.assert_array_equal(there[name], here[name])
    plot_runs([paths[0], str(urls[1])], tmp_path / "runs.png")
    assert (tmp_path / "runs.png").exists()


def test_a_picture_is_written(tmp_path):
    output = tmp_path / "pictures" / "runs.png"
    plot_runs([write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2, offset=3.0)], output)
    with Image.open(output) as picture:
        assert picture.size == (1200, 456)


def test_wrong_folders_and_outputs_are_refused(tmp_path):
    run = write_run(tmp_path / "a", 1)
    with pytest.raises(ConfigurationError, match=r"^output = "):
        plot_runs([run], tmp_path / "runs.txt")
    with pytest.raises(ConfigurationError, match="does not hold a run"):
        plot_runs([tmp_path / "nothing"], tmp_path / "runs.png")
    RunFolder(tmp_path / "empty").open_new(EXPERIMENTS["demo"]())
    with pytest.raises(ConfigurationError, match="does not hold any scalars yet"):
        plot_runs([tmp_path / "empty"], tmp_path / "runs.png")


def test_a_run_that_is_named_twice_or_copied_is_one_run(tmp_path, monkeypatch, capsys):
    first, second = write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2)
    (tmp_path / "latest").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    named = ["a", "a/", "./a", str(first), tmp_path / "latest", f"file://{first}"]
    assert [len(folders) for folders in group_runs(named).values()] == [1]
    shutil.copytree(first, tmp_path / "copy")
    counted = []
    monkeypatch.setattr(plot, "_picture", lambda groups, scalars, kind: counted.append(groups) or b"")
    plot_runs([*named, "copy", second], tmp_path / "runs.png")
    (folders,) = counted[0].values()
    assert len(folders) == 2
    assert (
        capsys.readouterr().err == "metagrad: copy: has the seed and the rows of a, and both are counted as one run\n"
    )
    write_run(tmp_path / "same rows", 3)  # as two seeds may have, early on
    plot_runs([first, tmp_path / "same rows"], tmp_path / "runs.png")
    assert [len(folders) for folders in counted[1].values()] == [2]


def test_a_picture_goes_to_a_url_or_through_the_users_own_links(tmp_path):
    run = write_run(tmp_path / "a", 1)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "mine").symlink_to("pictures")
    plot_runs([run], tmp_path / "mine" / "runs.svg")
    assert b"<svg" in (tmp_path / "pictures" / "runs.svg").read_bytes()
    (tmp_path / "target.png").write_bytes(b"kept")
    (tmp_path / "runs.png").symlink_to("target.png")
    plot_runs([run], tmp_path / "runs.png")
    assert (tmp_path / "target.png").read_bytes() == b"kept"
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("output", "rule"),
    [
        ("folder.png", "is a folder"),
        ("file/runs.png", "is not a folder"),
        ("runs\0.png", "contains a null byte"),
        ("x" * 300 + ".png", "File name too long"),
        ("memory://x/runs.png", "does not keep files"),
        ("s3://KEY:secret@bucket/runs.png", "holds credentials"),
        ("runs.txt", "must end in one of"),
        ("", "must end in one of"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(tmp_path, monkeypatch, output, rule):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=rf"^output = '.*{rule}") as refused:
        plot_runs(["nowhere"], output)
    assert "secret" not in str(refused.value)


def test_names_of_others_are_shown_as_they_are():
    assert plot._as_label("$\\frac{1}{$") == "\\$\\frac{1}{\\$"
    assert plot._as_label("_hidden\x1b") == " _hidden\\x1b"
