from dataclasses import replace

from metagrad.experiments.debiasing.snake import demo, snake_6x6
from metagrad.networks import SnakeCnn


def test_the_papers_settings() -> None:
    """Debiasing paper, Table 1 and Appendix C.2."""
    experiment = snake_6x6()
    assert experiment.network == SnakeCnn(channels=32, policy_hidden=64, value_hidden=128)
    assert (experiment.env.rows, experiment.env.columns) == (6, 6)  # type: ignore[union-attr]
    assert (experiment.environments, experiment.rollout_length, experiment.meta.n) == (512, 5, 1)
    assert (experiment.outer.gamma, experiment.outer.lambda_, experiment.outer.critic) == (1.0, 1.0, "outer")
    declaration = experiment.learner.meta_parameters.declaration((6, 6, 5), 4)
    assert [name for name, parameter in declaration.items() if parameter.is_learnt] == ["gamma"]
    assert declaration["gamma"].initial == 0.8


def test_the_demo_differs_only_in_what_it_shows() -> None:
    paper, shown = snake_6x6(), demo()
    assert (shown.meta.n, shown.meta.surrogate, shown.outer.critic) == (3, "lvc", "outer")
    same = replace(shown, name=paper.name, description=paper.description, meta=paper.meta, updates=paper.updates)
    assert same == paper
