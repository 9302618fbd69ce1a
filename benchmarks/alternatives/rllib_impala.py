"""Plays Pong with RLlib's IMPALA and counts the decisions per second that its learner trains on.

Tuned on two cores. Its runners step ALE's vectorized games, written in C++, instead of one wrapped game after another.
The driver waits for samples and does not poll for them: with two runners of 16 games and a learner process that alone
doubled the rate, from 335 to 755. The learner is a thread of the driver (1,244), and one runner has all 32 games
(1,425): two cores then have two busy processes. 64 games, fragments of 5 or 10 steps and batches of 320 or 1,280 were
no faster. These rates are of its own counter, see `trained`, and of one short run each.
"""

import sys
import time
from typing import Any

import gymnasium as gym
import ray
import torch
from ale_py import AtariVectorEnv
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import Tensor, nn

from benchmarks.alternatives.pong import serve_pong
from benchmarks.end_to_end_group import Window

PACKAGES = ("ray", "torch", "ale-py", "gymnasium", "numpy")
SECONDS_FOR_SAMPLES = 0.05  # its default of 0 has the driver ask without a pause: a core that nobody else gets
SETTINGS: dict[str, int] = {
    "env_runners": 1,
    "environments_per_env_runner": 32,
    "rollout_fragment_length": 20,
    "train_batch_size": 640,
    "learners": 0,  # in the driver's process, in a thread of its own
    "torch_threads_per_process": 1,
}


class NatureModule(TorchRLModule, ValueFunctionAPI):
    """Builds the network of Mnih et al. 2015 with one torso for policy and value.

    RLlib's own default has a hidden layer for each.
    """

    def setup(self) -> None:
        """Build the layers; RLlib calls this."""
        self.torso = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )
        assert isinstance(self.action_space, gym.spaces.Discrete)
        self.logits = nn.Linear(512, int(self.action_space.n))
        self.value = nn.Linear(512, 1)

    def _features(self, batch: dict[str, Any]) -> Tensor:
        pixels = batch[Columns.OBS].to(torch.float32, memory_format=torch.channels_last)
        features: Tensor = self.torso(pixels / 255)
        return features

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.logits(self._features(batch))}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        features = self._features(batch)
        return {Columns.ACTION_DIST_INPUTS: self.logits(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return the values of a batch; its features are there when the loss asks."""
        features = self._features(batch) if embeddings is None else embeddings
        value: Tensor = self.value(features).squeeze(-1)
        return value


def pong(context: dict[str, Any]) -> Any:
    """Make ALE's vectorized games: 84 x 84 grey, 4 stacked, 4 screens per decision, no sticky actions, as in ours."""
    return AtariVectorEnv(
        "pong",
        num_envs=context.get("num_envs", 1),
        num_threads=1,
        autoreset_mode="NextStep",
        max_num_frames_per_episode=108_000,
        noop_max=30,
        frameskip=4,
        maxpool=True,
        use_fire_reset=True,
        reward_clipping=True,
        repeat_action_probability=0.0,
        full_action_space=False,
    )


def configuration(settings: dict[str, int]) -> Any:
    """Build IMPALA as RLlib 2.60 has it, with our network and its own V-trace, Adam and clip."""
    register_env("pong", pong)
    one = pong({})
    return (
        IMPALAConfig()
        .framework("torch")
        .environment("pong", observation_space=one.single_observation_space, action_space=one.single_action_space)
        .env_runners(
            num_env_runners=settings["env_runners"],
            num_envs_per_env_runner=settings["environments_per_env_runner"],
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            rollout_fragment_length=settings["rollout_fragment_length"],
        )
        .learners(num_learners=settings["learners"], num_gpus_per_learner=0)
        .training(
            train_batch_size_per_learner=settings["train_batch_size"],
            lr=0.0005,
            timeout_s_sampler_manager=SECONDS_FOR_SAMPLES,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=NatureModule))
        .reporting(min_time_s_per_iteration=1)
    )


def trained(result: dict[str, Any], fragment_length: int) -> float:
    """Count the decisions that the learner has computed gradients of so far.

    Its counter has one row more for each fragment, which was appended for the bootstrap and enters no loss.
    """
    counted = result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"]
    return float(counted) * fragment_length / (fragment_length + 1)


def measure(warm_up_s: float, window_s: float, settings: dict[str, int]) -> dict[str, Any]:
    """Measure one whole run: start, warm-up, window, shutdown."""
    length = settings["rollout_fragment_length"]
    torch.set_num_threads(settings["torch_threads_per_process"])
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    algorithm = configuration(settings).build_algo()
    until = time.perf_counter() + warm_up_s
    result = algorithm.train()
    while time.perf_counter() < until or "learners" not in result:  # there is no counter before the first update
        result = algorithm.train()
    window, before = Window(), trained(result, length)
    while window.seconds < window_s or "learners" not in result:
        result = algorithm.train()
    answer = {"decisions": trained(result, length) - before, **window.close()}
    algorithm.stop()
    ray.shutdown()
    return answer


if __name__ == "__main__":
    serve_pong(__spec__.name, measure, SETTINGS, PACKAGES, sys.argv[1:])
