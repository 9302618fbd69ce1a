from dataclasses import replace

import torch

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.experiments.gradient_bias.atari import atari, atari_released
from metagrad.networks import NatureCnn


def test_the_papers_settings() -> None:
    """Gradient-bias paper, G.3 and Table 4."""
    experiment = atari()
    assert experiment.network == NatureCnn(hidden=512)
    assert (experiment.meta.n, experiment.meta.surrogate, experiment.outer.critic) == (3, "lvc", "inner")
    assert (experiment.environments, experiment.rollout_length) == (64, 5)
    declaration = experiment.learner.meta_parameters.declaration((4, 84, 84), 6)
    assert all(parameter.is_learnt for parameter in declaration.values())
    assert not experiment.has_outer_critic


def test_the_release_differs_from_the_paper_in_three_values() -> None:
    released, paper = atari_released(), atari()
    assert released.network == NatureCnn(hidden=512, gamma_embedding=16)
    assert released.updates == 3 * (125_000 // 3)
    as_in_the_paper = replace(
        released,
        name=paper.name,
        description=paper.description,
        network=paper.network,
        updates=paper.updates,
        optimizer=replace(released.optimizer, is_clip_coefficient_constant=False),
        meta=replace(released.meta, strategy="discard"),
    )
    assert as_in_the_paper == paper
    network = released.algorithm(
        EnvironmentSpec(1, (4, 84, 84), torch.uint8, ("A",) * 6, torch.device("cpu"), "made up")
    ).network
    assert dict(zip(network.layout.names, network.layout.shapes, strict=True))["value.mixture.weight"] == (512, 528)
