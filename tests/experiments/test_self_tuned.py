import json
from collections.abc import Callable

import pytest
import torch

from metagrad.actor_critic import VtraceLoss
from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.json_form import differences, from_json, to_json
from metagrad.distributions import Categorical
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.self_tuning.self_tuned import lirpg_atari, lirpg_snake, stacx, stacx_impala
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.learner.algorithm import Sample
from metagrad.losses import forward
from metagrad.meta_parameters import learnt_slices
from metagrad.networks import ImpalaCnn, Mlp, NatureCnn, Network
from metagrad.types import Trajectory, WeightSnapshot

SCREEN = (4, 84, 84)
MAKERS = (stacx, stacx_impala, lirpg_atari, lirpg_snake)


def changed(base: Experiment, variant: Experiment) -> set[str]:
    return {field for field, _, _ in differences(base, variant)} - {"name", "description"}


def test_stacx_learns_seven_hyper_parameters_from_close_to_their_usual_values() -> None:
    experiment = stacx()
    assert changed(atari(), experiment) == {"meta.n", "outer.critic", "meta_parameters"}
    assert experiment.meta.n == 1
    assert isinstance(experiment.meta_parameters, VtraceLoss)
    declaration = experiment.meta_parameters.declaration(SCREEN, 6)
    assert len(declaration) == 7
    assert all(parameter.is_learnt for parameter in declaration.values())  # type: ignore[union-attr]
    assert all(x.initial == pytest.approx(0.99 * x.high) for x in declaration.values())  # type: ignore[union-attr]
    assert declaration["value_coefficient"].high == 0.5  # type: ignore[union-attr]
    assert declaration["entropy_coefficient"].high == 0.01  # type: ignore[union-attr]


def test_stacx_impala_is_stacx_with_another_network() -> None:
    assert changed(stacx(), stacx_impala()) == {"network"}
    assert stacx_impala().network == ImpalaCnn()


def test_lirpg_snake_is_snake_6x6_with_an_intrinsic_reward() -> None:
    base, variant = snake_6x6(), lirpg_snake()
    optimizer = {"meta.optimizer.learning_rate", "meta.optimizer.eps_root"}
    assert changed(base, variant) == optimizer | {"meta_parameters"}
    assert isinstance(variant.meta_parameters, IntrinsicRewardLoss)
    ours = variant.meta_parameters.declaration((6, 6, 5), 4)
    theirs = base.meta_parameters.declaration((6, 6, 5), 4)
    assert {name: ours[name] for name in theirs} == dict(theirs)
    assert variant.meta_parameters.reward_network == Mlp(hidden=64)


def test_the_released_values_of_lirpg() -> None:
    experiment = lirpg_atari()
    assert experiment.environments * experiment.rollout_length * experiment.updates == 50_000_000
    declaration = experiment.meta_parameters.declaration(SCREEN, 6)
    scalars = {name: x for name, x in declaration.items() if name != "reward_weights"}
    assert not any(x.is_learnt for x in scalars.values())  # type: ignore[union-attr]
    assert scalars["intrinsic_coefficient"].initial == 0.01  # type: ignore[union-attr]
    assert isinstance(experiment.meta_parameters, IntrinsicRewardLoss)
    assert experiment.meta_parameters.reward_network == NatureCnn(hidden=512)
    assert experiment.optimizer.learning_rate == experiment.meta.optimizer.learning_rate == 7e-4


@pytest.mark.parametrize("make", MAKERS)
def test_json(make: Callable[[], Experiment]) -> None:
    assert from_json(json.loads(json.dumps(to_json(make())))) == make()


def random_rollouts(network: Network, shape: tuple[int, ...], actions: int) -> Sample:
    """Random steps of random observations, acted on by the snapshot's own policy; 2 environments, 3 steps."""
    generator = torch.Generator().manual_seed(0)

    def sample(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        observation = torch.rand(4, 2, *shape, generator=generator)
        is_end = torch.zeros(3, 2, dtype=torch.bool)
        trajectory = Trajectory(
            observation=(255 * observation).to(torch.uint8) if shape == SCREEN else observation,
            action=torch.randint(actions, (3, 2), generator=generator),
            reward=torch.randn(3, 2, generator=generator),
            is_terminal=is_end,
            is_truncated=is_end,
            valid=~is_end,
            behaviour_log_prob=torch.zeros(3, 2),
            policy_version=snapshot.version,
        )
        logits = forward(network, snapshot.theta, trajectory, ("logits",))["logits"]
        return trajectory._replace(behaviour_log_prob=Categorical(logits).log_prob(trajectory.action))

    return sample


@pytest.mark.parametrize("make", MAKERS)
def test_two_updates_move_all_that_is_learnt(make: Callable[[], Experiment]) -> None:
    """Real rollouts of every experiment are in test_experiments."""
    experiment = make()
    shape, actions = (SCREEN, 6) if isinstance(experiment.env, AtariConfig) else ((6, 6, 5), 4)
    dtype = torch.uint8 if shape == SCREEN else torch.float32
    spec = EnvironmentSpec(2, shape, dtype, ("action",) * actions, torch.device("cpu"), "random")
    algorithm = experiment.algorithm(spec)
    first = state = algorithm.init(0, torch.device("cpu"))
    sample = random_rollouts(algorithm.network, shape, actions)
    for _ in range(2):
        state, _ = algorithm.update(state, sample)
    is_moved = state.eta != first.eta
    slices = learnt_slices(algorithm.declaration)
    assert slices
    assert all(is_moved[at].any() for at in slices.values()), {name: is_moved[at] for name, at in slices.items()}
    fixed = set(algorithm.shown(first)) - {name.replace("weights", "weights_norm") for name in slices}
    assert all(algorithm.shown(state)[name] == algorithm.shown(first)[name] for name in fixed)
