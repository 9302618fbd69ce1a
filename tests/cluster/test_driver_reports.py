from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.driver_reports import Start, driver_reports
from metagrad.cluster.on_ray.evaluator import Evaluation
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.run_logs import RunLogs
from metagrad.learner.checkpoint import load, paths
from metagrad.learner.reports import Candidate, Checkpoint, Lags, Message, Row, Standing, Summary

Tiny = Callable[..., Experiment]


class Games:
    """An evaluator whose scores are there as soon as they are asked for, once it is told to be quick."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.is_quick = False
        self.gif: bytes | None = None

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def submit(self, theta: torch.Tensor, update: int) -> None:
        self.waiting.append(update)

    def withdraw(self, after: int) -> None:
        self.waiting = [update for update in self.waiting if update <= after]

    def finished(self, seconds: float) -> list[Evaluation]:
        done, self.waiting = (self.waiting, []) if self.is_quick else ([], self.waiting)
        return [Evaluation(update, {"evaluation/return_mean": update / 2}, self.gif) for update in done]


def no_logs() -> RunLogs:
    return RunLogs({}, print, done=-1, covered=0)


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_is_reported_lands_in_the_run_folder(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    experiment, games = tiny(checkpoint=CheckpointConfig(every=1, keep=1)), Games()
    folder = RunFolder(tmp_path)
    with (
        Progress(console, 6) as progress,
        driver_reports(experiment, folder, progress, Start(), games, no_logs()) as reports,
    ):
        reports(Message("hello"))
        reports.learner_restarted("killed")
        reports(Row({"loss/inner": 1.5}, 2))
        reports(Lags([0, 0], 2))
        reports(Lags([1, 3], 4))
        for update in (1, 2):
            reports(Checkpoint(update, {"update": update}))
        reports(Summary({"updates": 2}))
        reports(Standing(6, 100.0, 1.0, {"gamma": 0.9}, 0.0))
    assert load(*paths(folder.checkpoints)) == {"update": 2}
    updates, values = logged_scalars(tmp_path)["loss/inner"]
    assert (updates.tolist(), values.tolist()) == ([2], [1.5])
    assert reports.newest_summary == {"updates": 2}
    assert "hello\nlearner: lost (killed); started again from the newest checkpoint, actors kept\n" in text(console)
    assert "update 6/6" in text(console)


def test_a_run_that_never_starts_leaves_nothing(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (
        Progress(console, 6) as progress,
        driver_reports(tiny(), folder, progress, Start(), Games(), no_logs()) as reports,
    ):
        reports(Message("refused"))
    assert list(tmp_path.iterdir()) == []


def test_rows_behind_the_checkpoint_of_another_life_are_taken_back(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    for start_update, updates in ((0, (1, 2, 3)), (1, (2,))):
        with (
            Progress(console, 6) as progress,
            driver_reports(
                tiny(), RunFolder(tmp_path), progress, Start(start_update, start_update), Games(), no_logs()
            ) as reports,
        ):
            for update in updates:
                reports(Row({"a/b": start_update + update / 10}, update))
    updates, values = logged_scalars(tmp_path)["a/b"]
    assert updates.tolist() == [1, 2]
    assert values.round(3).tolist() == [0.1, 1.2]


def test_evaluations_that_fall_behind_are_left_out_and_that_is_said(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    games, theta = Games(), torch.zeros(2)
    with (
        Progress(console, 6) as progress,
        driver_reports(tiny(), RunFolder(tmp_path), progress, Start(), games, no_logs()) as reports,
    ):
        for update in range(1, 7):
            reports(Candidate(theta, update))
        assert games.waiting == [1, 2, 3, 4]
        reports.write_evaluations()
        assert text(console).count("is not evaluated: 4 others still wait") == 2
        games.is_quick = True
    scores: Any = logged_scalars(tmp_path)["evaluation/return_mean"]
    assert [x.tolist() for x in scores] == [[1, 2, 3, 4], [0.5, 1.0, 1.5, 2.0]], "written when the reports end"


def test_evaluations_beyond_the_checkpoint_of_another_life_are_asked_for_once(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    games, theta = Games(), torch.zeros(2)
    for start_update in (0, 1):
        with (
            Progress(console, 6) as progress,
            driver_reports(
                tiny(), RunFolder(tmp_path), progress, Start(start_update, start_update), games, no_logs()
            ) as reports,
        ):
            for update in range(start_update + 1, 4):
                reports(Candidate(theta, update))
        assert games.waiting == [1, 2, 3]
    assert "is not evaluated" not in text(console)


def test_an_episode_that_is_shown_is_a_picture_in_the_event_files(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    games = Games()
    games.is_quick, games.gif = True, gif()
    with (
        Progress(console, 6) as progress,
        driver_reports(tiny(), RunFolder(tmp_path), progress, Start(), games, no_logs()) as reports,
    ):
        reports(Candidate(torch.zeros(2), 3))
    read = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    (picture,) = read.Images("evaluation/episode")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    assert picture.encoded_image_string == games.gif


def gif() -> bytes:
    content = BytesIO()
    Image.new("RGB", (6, 4)).save(content, "GIF")
    return content.getvalue()
