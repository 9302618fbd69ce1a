from dataclasses import dataclass

import pytest

from metagrad.cli.commands import plan, train
from metagrad.cli.options import parse, without_auto
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """A small command."""

    experiment: Experiment
    steps: int = 3


def snake(*words: str) -> Experiment:
    return parse(Experiment, words, EXPERIMENTS["snake-6x6"](), "metagrad config snake-6x6")


def test_no_words_change_nothing() -> None:
    assert snake() == EXPERIMENTS["snake-6x6"]()


def test_words_change_fields_at_any_depth() -> None:
    changed = snake("--meta.n", "3", "--meta.optimizer.learning-rate=0.25", "--seed", "7", "--lookahead", "fork")
    assert (changed.meta.n, changed.meta.optimizer.learning_rate, changed.seed, changed.lookahead) == (
        3,
        0.25,
        7,
        "fork",
    )


@pytest.mark.parametrize("word", ["--outer.lambda", "--outer.lambda_"])
def test_lambda_is_an_option_though_a_keyword(word: str) -> None:
    assert snake(word, "0.5").outer.lambda_ == 0.5
    assert snake("--meta-parameters.lambda.initial", "0.5").meta_parameters.lambda_.initial == 0.5
    assert snake("--meta-parameters.lambda.initial=0.5").meta_parameters.lambda_.initial == 0.5


def test_lambda_stays_in_a_value() -> None:
    assert snake("--device=a-lambda").device == "a-lambda"
    assert snake("--device", "a.lambda").device == "a.lambda"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--meta.nn", "1"), "meta.nn = '1': is not an option of this command; did you mean --meta.n? see P --help"),
        (("--seed", "x"), "seed = 'x': invalid literal for int() with base 10: 'x'; see P --help"),
        (("--seed=x",), "seed = 'x': invalid literal for int() with base 10: 'x'; see P --help"),
        (("--topology", "x"), "topology = 'x': must be one of 'ray', 'colocated'; see P --help"),
        (("--meta.n", "-1"), "meta.n = -1: must be 0 (plain A2C) or more; count the updates to look through"),
        (
            ("--meta.optimizer.learning-rate", "-1"),
            "meta.optimizer.learning_rate = -1.0: must be positive and finite; change it",
        ),
        (
            ("--optimizer.learning-rate", "nan"),
            "optimizer.learning_rate = nan: must be positive and finite; change it",
        ),
        (
            ("--meta-parameters.gamma.initial", "2"),
            "meta_parameters.gamma.initial = 2.0: a learnt meta-parameter starts strictly between its bounds 0.0 and "
            "1.0; choose a value inside, or set is-learnt to False",
        ),
        (("--actors", "0"), "actors = 0: a run needs at least one actor; use --actors 1 or more"),
        (("--env.rows", "0"), "env.rows = 0: must be a whole number of at least 1; raise env.rows"),
    ],
)
def test_a_refusal_is_one_line_with_field_value_rule_and_remedy(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse(Experiment, words, EXPERIMENTS["snake-6x6"](), "P")
    assert str(refusal.value) == line
    with pytest.raises(ConfigurationError) as refusal:
        parse(Options, _nested(words), _options(), "P")
    assert str(refusal.value).removeprefix("experiment.").replace("--experiment.", "--") == line


def _options() -> Options:
    return Options(experiment=EXPERIMENTS["snake-6x6"]())


def _nested(words: tuple[str, ...]) -> list[str]:
    return [f"--experiment.{word[2:]}" if word.startswith("--") else word for word in words]


def test_a_game_is_named_by_its_whole_field() -> None:
    with pytest.raises(ConfigurationError, match=r"^env\.game = 'Pongg': .*did you mean Pong"):
        parse(Experiment, ["--env.game", "Pongg"], EXPERIMENTS["atari"](), "P")


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--meta\.n.*see P --help$"):
        parse(Experiment, ["--meta.n"], EXPERIMENTS["snake-6x6"](), "P")


def test_help_is_printed_at_the_terminals_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        snake("--help")
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("--meta.n" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "kept", "chosen"),
    [
        (["--actors", "auto", "--seed", "1"], ["--seed", "1"], {"actors"}),
        (["--seed", "1", "--actors=auto"], ["--seed", "1"], {"actors"}),
        (["--learners=auto", "--actors", "auto"], [], {"actors", "learners"}),
        (["--device", "auto", "--learners", "3"], ["--device", "auto", "--learners", "3"], set()),
        ([], [], set()),
    ],
)
def test_actors_and_learners_are_chosen_where_the_words_say_so(
    words: list[str], kept: list[str], chosen: set[str]
) -> None:
    assert without_auto(words) == (kept, chosen)


def test_a_plan_is_of_the_chosen_actors_and_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[Experiment] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("metagrad.cluster.plan.preview.usable_cores", lambda: 4)
    monkeypatch.setattr(plan, "plan", lambda experiment, is_json: planned.append(experiment))
    plan.run(["atari", "--env.game", "Pong", "--environments", "32", "--actors", "auto"])
    plan.run(["atari", "--env.game", "Pong", "--environments", "32", "--actors", "2"])
    assert [(each.actors, each.actor_threads) for each in planned] == [(1, 4), (2, 1)]
    assert capsys.readouterr().out.startswith("chosen: 1 actor, 32 environments and 4 CPUs each (environments that ")


def test_of_a_run_that_goes_on_learners_are_chosen_again_and_actors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    options = train.TrainOptions(experiment=snake("--topology", "ray"), run_dir="runs/x", resume=True)
    assert train._with_chosen(options, {"learners"}).learners == 2
    with pytest.raises(ConfigurationError, match=r"actors = 'auto': chooses for a run that begins"):
        train._with_chosen(options, {"actors", "learners"})


def test_a_plan_is_of_the_chosen_learners(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    plan.run(["snake-6x6", "--learners", "auto", "--actors", "3", "--environments", "6"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "chosen: 3 learners (of 8 GPUs, since each has some of the 3 actors and 3 rollouts of a batch)"
    assert any(line.startswith("learners          3, each with up to 1 of 3 rollouts of a batch; ") for line in lines)
    assert any("8 GPUs" in line and "3 learners" in line for line in lines)
