"""What an Atari environment is told; checked without importing a backend."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from metagrad.actors.envs.atari_games import GAMES, close_games
from metagrad.actors.envs.base import EnvironmentConfig
from metagrad.errors import require

if TYPE_CHECKING:
    from metagrad.actors.envs.atari import AtariEnvironment

AtariBackend = Literal["envpool", "ale"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AtariConfig(EnvironmentConfig):
    """One Atari game and its preprocessing; every value is honoured by both backends.

    Source: Mnih et al. 2015 (Nature 518), Methods and Extended Data Table 1, as completed by the wrappers of OpenAI
    Baselines (`atari_wrappers.py`), which the meta-gradient A2C experiments use.

    Raises ConfigurationError: unknown game or backend, a value out of its range.
    """

    game: str = "Pong"
    backend: AtariBackend = "envpool"
    no_op_max: int = 30  # up to 30 no-ops open a game (Mnih et al. 2015, Extended Data Table 1, "no-op max")
    frame_skip: int = 4  # an action lasts 4 frames; a screen is the maximum of the last 2 (Mnih et al. 2015, Methods)
    episodic_life: bool = True  # in training a lost life is terminal (Mnih et al. 2015, Methods, "Training details")
    fire_on_reset: bool = True  # FIRE opens a game and follows a lost life (Baselines FireResetEnv); evaluation too
    frame_size: int = (
        84  # grey screens (luminance), 84 x 84, area interpolation (Mnih et al. 2015; Baselines WarpFrame)
    )
    stack_size: int = 4  # the last 4 screens (Mnih et al. 2015, "agent history length")
    sign_reward: bool = True  # the learner's reward is the score's sign (Mnih et al. 2015; Baselines ClipRewardEnv)
    sticky_action_probability: float = 0.0  # 0 in the papers reproduced; Machado et al. 2018 recommend 0.25
    full_action_space: bool = False  # the game's own actions (Mnih et al. 2015); True: all 18 (Machado et al. 2018)
    max_episode_steps: int = 27_000  # agent steps; 108,000 frames, 30 minutes of play (van Hasselt et al. 2016)

    def __post_init__(self) -> None:
        if self.game not in GAMES:
            near = " or ".join(close_games(self.game))
            remedy = f"did you mean {near}?" if near else f"names are written like {', '.join(list(GAMES)[:3])}"
            require(False, "env.game", self.game, f"none of the {len(GAMES)} Atari games", remedy)
        backends = get_args(AtariBackend)
        require(self.backend in backends, "env.backend", self.backend, f"one of {backends}", "envpool is the default")
        require(self.no_op_max >= 1, "env.no_op_max", self.no_op_max, "at least 1", "1 is the shortest random start")
        require(
            self.frame_skip >= 2, "env.frame_skip", self.frame_skip, "at least 2", "a screen joins the last 2 frames"
        )
        require(
            self.frame_size >= 1, "env.frame_size", self.frame_size, "at least 1 pixel", "84 is what networks expect"
        )
        require(
            self.stack_size >= 1, "env.stack_size", self.stack_size, "at least 1", "1 shows the present screen only"
        )
        for name in ("no_op_max", "frame_skip", "frame_size", "stack_size", "max_episode_steps"):
            # The backends count in 32 bits and give screens of 210 x 160 pixels.
            most = 2**31 - 1 if name == "max_episode_steps" else 1_000
            require(getattr(self, name) <= most, f"env.{name}", getattr(self, name), f"at most {most}", "lower it")
        sticky = self.sticky_action_probability
        require(0 <= sticky < 1, "env.sticky_action_probability", sticky, "in [0, 1)", "0 never repeats an action")
        require(
            self.max_episode_steps >= 1, "env.max_episode_steps", self.max_episode_steps, "at least 1", "27000 is usual"
        )

    @property
    def rom_name(self) -> str:
        """Name of the game's ROM in both backends."""
        return GAMES[self.game]

    def make(
        self, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "AtariEnvironment":
        """B games on the host, whatever the device."""
        del device
        from metagrad.actors.envs.atari import make_atari  # the backends, which checking a value does without

        return make_atari(self, batch_size, seed, threads=threads, is_training=is_training)
