"""Rollouts of stacked pictures travel as single frames; rebuilt, they are what the pool showed, bit for bit."""

from collections import Counter

import pytest
import torch

from metagrad.actors.envs.atari import AtariConfig, make_atari
from metagrad.actors.envs.base import EnvironmentSpec, EnvironmentStep
from metagrad.actors.policy import Decision
from metagrad.actors.rollout import EnvironmentFault, Pool, collect
from metagrad.frame_stacks import unpacked
from metagrad.types import PackedTrajectory, Trajectory

BATCH, LENGTH = 4, 20


class Watched:
    """An environment, a copy of all that it showed, and how often a game ended in which way."""

    def __init__(self, environment):
        self.environment, self.spec = environment, environment.spec
        self.shown, self.counts = [], Counter()

    def reset(self):
        self.shown.append(self.environment.reset().clone())
        return self.shown[-1].clone()

    def step(self, action):
        step = self.environment.step(action)
        stacks = step.observation
        continues = (stacks[:, :-1] == self.shown[-1][:, 1:]).flatten(1).all(1)
        self.counts["begun"] += int((~continues).sum())
        self.counts["lost lives"] += int((step.is_terminal & ~step.is_episode_end).sum())
        for name in ("is_truncated", "is_episode_end"):
            self.counts[name] += int(getattr(step, name).sum())
        self.counts["game over"] += int((step.is_episode_end & ~step.is_truncated).sum())
        self.counts["invalid"] += int((~step.valid).sum())
        self.shown.append(stacks.clone())
        return step

    def close(self):
        self.environment.close()


def acting_at_random(num_actions):
    def act(observation, generator):
        action = torch.randint(num_actions, observation.shape[:1], generator=generator)
        return Decision(action, torch.zeros(len(observation)))

    return act


def play(config, steps):
    """Roll out so many steps, compare every rollout with what was shown, and return what happened in them."""
    environment = config.make(batch_size=BATCH, seed=3, device=torch.device("cpu"), threads=1, is_training=True)
    watched = Watched(environment)
    pool = Pool(watched, seed=5)
    act = acting_at_random(watched.spec.num_actions)
    for _ in range(steps // (BATCH * LENGTH)):
        trajectory, _ = collect(pool, act, 0, LENGTH)
        assert isinstance(trajectory, PackedTrajectory)
        assert torch.equal(unpacked(trajectory).observation, torch.stack(watched.shown))
        assert trajectory.frames.shape[1:] == watched.spec.observation_shape[1:]
        assert len(trajectory.frames) <= (LENGTH + config.stack_size) * BATCH + 1, "each frame once, and ALE's zeros"
        del watched.shown[:-1]
    watched.close()
    return watched.counts


@pytest.mark.parametrize("backend", ["envpool", "ale", "ale-snapshots"])
def test_rebuilt_stacks_are_the_pools_own(backend):
    counts = play(AtariConfig(game="Breakout", backend=backend, max_episode_steps=50), 400)
    assert counts["begun"] >= 4
    assert counts["lost lives"] >= 4
    assert counts["invalid"] > counts["begun"]


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("backend", ["envpool", "ale"])
@pytest.mark.parametrize("game", ["Pong", "Breakout", "Seaquest"])
def test_rebuilt_stacks_are_the_pools_own_over_twenty_thousand_steps(game, backend):
    whole = play(AtariConfig(game=game, backend=backend), 10_000)
    cut = play(AtariConfig(game=game, backend=backend, max_episode_steps=60), 10_000)
    assert whole["game over"] >= 4
    assert whole["begun"] + cut["begun"] >= 100
    assert cut["is_truncated"] >= 50 or backend == "ale"
    assert cut["is_episode_end"] >= 100
    assert game == "Pong" or whole["lost lives"] >= 20
    assert game != "Breakout" or whole["invalid"] > whole["begun"]


@pytest.mark.parametrize(("stack_size", "is_colour_view"), [(1, False), (4, True)])
def test_pictures_that_are_no_stacks_travel_whole(stack_size, is_colour_view):
    config = AtariConfig(stack_size=stack_size)
    sizes = {"batch_size": 2, "seed": 0, "threads": 1}
    environment = make_atari(config, **sizes, is_training=True, is_colour_view=is_colour_view)
    pool = Pool(environment, seed=0)
    first = pool.observation.clone()
    trajectory, _ = collect(pool, acting_at_random(environment.spec.num_actions), 0, 2)
    assert isinstance(trajectory, Trajectory)
    assert torch.equal(trajectory.observation[0], first)
    environment.close()


class Camera:
    """Shows stacks of float pictures, one of which is not finite at step 2."""

    spec = EnvironmentSpec(2, (3, 2, 2), torch.float32, ("stay",), torch.device("cpu"), "Camera", is_frame_stack=True)

    def __init__(self):
        self.stacks = torch.zeros(2, 3, 2, 2)
        self.time = 0

    def reset(self):
        return self.stacks.clone()

    def step(self, action):
        new = torch.full((2, 1, 2, 2), float(self.time))
        if self.time == 2:
            new[1] = float("nan")
        self.stacks = torch.cat([self.stacks[:, 1:], new], dim=1)
        self.time += 1
        return EnvironmentStep.same_step(self.stacks.clone(), torch.zeros(2), torch.zeros(2, dtype=torch.bool))

    def close(self):
        pass


def test_a_packed_picture_that_is_not_finite_is_a_fault():
    pool = Pool(Camera(), seed=0)
    message = r"^Camera: environment 1 of 2 returned a non-finite observation at step 2"
    with pytest.raises(EnvironmentFault, match=message):
        collect(pool, acting_at_random(1), 0, 5)
