import pytest

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.experiments.one_step_at_a_time.snake_12x12 import snake_12x12
from metagrad.meta_gradient import outer_weights
from metagrad.networks import SnakeTorsoCnn
from metagrad.optimizers import Adam


def test_the_papers_settings() -> None:
    """Sections 3.1 and 3.5, B.2, C.3 and Table 2."""
    experiment = snake_12x12()
    assert experiment.env == SnakeConfig(rows=12, columns=12, time_limit=5_000)
    assert experiment.network == SnakeTorsoCnn(channels=32, features=40, head_hidden=30)
    inner, outer = experiment.optimizer, experiment.meta.optimizer
    assert isinstance(inner, Adam)
    assert (inner.learning_rate, inner.max_gradient_norm) == (6e-4, 10.0)
    assert inner.annealing_updates == experiment.updates  # falls to 0 at the end
    assert (outer.learning_rate, outer.max_gradient_norm, outer.annealing_updates) == (1e-3, 0.1, None)
    assert (experiment.outer.gamma, experiment.outer.lambda_, experiment.outer.critic) == (0.99, 0.99, "inner")
    assert experiment.environments == 32
    assert experiment.meta.strategy == "discard"
    assert experiment.meta.kappa is None  # 1 - 1/n
    first, second, _ = outer_weights("mix", 3, experiment.meta.kappa)
    assert second / first == pytest.approx(2 / 3)


def test_all_four_hyper_parameters_are_learnt_as_plain_sigmoids() -> None:
    parameters = snake_12x12().meta_parameters
    assert isinstance(parameters, A2cLoss)
    declared = parameters.declaration((12, 12, 5), 4)
    assert {name: getattr(each, "initial", None) for name, each in declared.items()} == {
        "gamma": 0.99,
        "lambda": 0.99,
        "value_coefficient": 0.5,
        "entropy_coefficient": 0.01,
    }
    assert all((each.is_learnt, each.low, each.high) == (True, 0.0, 1.0) for each in declared.values())  # type: ignore[union-attr]
