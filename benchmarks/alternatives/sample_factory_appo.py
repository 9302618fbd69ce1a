"""Plays Pong with Sample Factory's APPO and counts the decisions per second that its learner trains on.

Tuned on two cores: asynchronous, two workers, double-buffered, each batch used once, pixels divided by 255 and not
normalized by running means. In CPU time per decision, since the machine was shared: 2.2 ms with 16 games a worker, 2.3
with 8, 2.5 with 16 in rollouts of 20 and batches of 640. It sets one torch thread in each process by itself. Its own
example for EnvPool would have the faster games; with EnvPool 1.2.5 it fails at once (Gymnasium's wrapper asks the pool
for `closed`), so its Gymnasium games are what is measured.
"""

import sys
import tempfile
import time
from typing import Any

import gymnasium as gym
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner
from sf_examples.atari.atari_utils import make_atari_env
from sf_examples.atari.train_atari import parse_atari_args

from benchmarks.alternatives.pong import serve_pong
from benchmarks.end_to_end_group import Window

PACKAGES = ("sample-factory", "torch", "ale-py", "gymnasium", "numpy")
SETTINGS: dict[str, str] = {
    "num_workers": "2",
    "num_envs_per_worker": "16",
    "worker_num_splits": "2",
    "rollout": "32",
    "batch_size": "512",
    "num_batches_per_epoch": "1",
    "num_epochs": "1",
    "async_rl": "True",
    "serial_mode": "False",
    "batched_sampling": "False",
    "with_vtrace": "False",
    "encoder_conv_architecture": "convnet_atari",
    "encoder_conv_mlp_layers": "512",
    "obs_scale": "255.0",
    "normalize_input": "False",
    "normalize_returns": "False",
    "device": "cpu",
}


def make_pong(name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> gym.Env:
    """Sample Factory's own wrappers around the ale-py that carries its ROMs.

    That one registers no games with a Gymnasium older than it likes, so each process does it here.
    """
    game = "PongNoFrameskip-v4"
    if game not in gym.registry:
        arguments = {"game": "pong", "frameskip": 1, "repeat_action_probability": 0.0, "full_action_space": False}
        gym.register(
            game, entry_point="ale_py.env:AtariEnv", kwargs=arguments | {"max_num_frames_per_episode": 108_000}
        )
    return make_atari_env(name, cfg, env_config, render_mode)


class Measurement(AlgoObserver):
    """Watches the learner's counter of decisions: warm-up, window, then the end of the training."""

    def __init__(self, warm_up_s: float, window_s: float):
        self._warm_up_s, self._window_s = warm_up_s, window_s
        self._started = 0.0
        self._window: Window | None = None
        self._before = 0
        self.answer: dict[str, Any] = {}

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Count; this is called after each batch that was trained on."""
        self._started = self._started or time.perf_counter()
        decisions = runner.env_steps.get(0, 0)
        if self._window is None:
            if time.perf_counter() - self._started >= self._warm_up_s:
                self._window, self._before = Window(), decisions
        elif self._window.seconds >= self._window_s and not self.answer:
            self.answer = {"decisions": decisions - self._before, **self._window.close()}
            runner.cfg.train_for_env_steps = 0  # the runner's own reason to end


def measure(warm_up_s: float, window_s: float, settings: dict[str, str]) -> dict[str, Any]:
    """Measure one whole run: start, warm-up, window, shutdown."""
    register_env("atari_pong", make_pong)
    with tempfile.TemporaryDirectory() as folder:
        fixed = {
            "env": "atari_pong",
            "experiment": "pong",
            "train_dir": folder,
            "summaries_use_frameskip": "False",  # its counters are decisions then
            "decorrelate_experience_max_seconds": "0",
            "save_every_sec": "3600",
            "train_for_env_steps": "1000000000",
        }
        cfg = parse_atari_args([f"--{name}={value}" for name, value in (fixed | settings).items()])
        cfg, runner = make_runner(cfg)
        measurement = Measurement(warm_up_s, window_s)
        runner.register_observer(measurement)
        status = runner.init()
        if status == ExperimentStatus.SUCCESS:
            status = runner.run()
    return measurement.answer


if __name__ == "__main__":
    serve_pong(__spec__.name, measure, SETTINGS, PACKAGES, sys.argv[1:])
