import json

import pytest
import torch

from benchmarks import environments_atari as subject
from metagrad.actors.envs import AtariConfig
from metagrad.networks import NatureCnn, build_network


@pytest.mark.slow
def test_quick_run_measures_every_program_on_both_backends():
    results = subject.measure_atari(rounds=1, quick=True)
    assert list(results) == ["Pong on EnvPool, 2", "Pong on ale-py, 2"]
    for result in results.values():
        assert all(row["steps_per_s"]["median"] > 0 for row in result["programs"].values())
        assert set(result["ratios"]) == set(subject.PAIRS)
        assert result["best"][subject.FLOOR] in {f"{subject.FLOOR}, plain", f"{subject.FLOOR}, channels_last"}
    assert json.dumps(results)
    assert subject.STEPS % subject.ROLLOUT_LENGTH == 0


def test_other_screens_end_the_measurement(monkeypatch):
    monkeypatch.setattr(subject, "BACKENDS", {"envpool": OtherGames})
    with pytest.raises(RuntimeError, match="different screens"):
        subject.measure_case(AtariConfig(), rounds=1, games=2, steps=5)


class OtherGames:
    """A bare pool that shows black."""

    def __init__(self, config, seeds, *, threads, is_colour_view):
        self._pool, self._seeds = self, seeds

    def reset(self):
        return (torch.zeros(len(self._seeds), 4, 84, 84, dtype=torch.uint8).numpy(),)

    def step(self, action):
        return self.reset()


@pytest.mark.parametrize("memory_format", subject.FORMATS.values())
def test_the_bare_forward_pass_computes_what_the_network_does(memory_format):
    network = build_network(NatureCnn(), (4, 84, 84), 6, has_outer_critic=False)
    theta = network.init(torch.Generator().manual_seed(0))
    parameters = network.layout.unflatten(theta)
    bare = subject.bare_network(6)
    with torch.no_grad():
        names = [name for name in network.layout.names if not name.startswith("value")]
        for own, name in zip(bare.parameters(), names, strict=True):
            assert own.shape == parameters[name].shape, name
            own.copy_(parameters[name])
    pixels = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = network.apply(theta, pixels, ("logits",))["logits"]
    torch.testing.assert_close(subject.bare_forward(bare, memory_format)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_random_actions_are_all_actions_and_no_others():
    spec = AtariConfig().make(batch_size=1, seed=0, device=torch.device("cpu"), threads=1, is_training=True).spec
    act = subject.random_actions(spec)()
    drawn = act(torch.zeros(1000, 1), torch.Generator().manual_seed(0)).action
    assert drawn.unique().tolist() == list(range(spec.num_actions))
