from metagrad.experiments.atari import atari
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
