import subprocess
import sys

import pytest

from metagrad.actors.envs.atari import AtariConfig
from metagrad.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Pnog", "Pong"),
        ("ms_pacman", "MsPacman"),
        ("ALE/Breakout-v5", "Breakout"),
        ("SeaquestNoFrameskip-v4", "Seaquest"),
    ],
)
def test_an_unknown_game_is_refused_with_the_game_that_was_meant(name, meant):
    with pytest.raises(ConfigurationError) as refusal:
        AtariConfig(game=name)
    message = str(refusal.value)
    assert message.startswith(f"env.game = {name!r}: none of the 104 Atari games; did you mean {meant}")
    assert "\n" not in message


def test_an_unknown_game_that_is_like_no_other_is_refused_with_examples():
    with pytest.raises(ConfigurationError, match="none of the 104 Atari games; names are written like Adventure"):
        AtariConfig(game="1942")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 1_001) for name in ("no_op_max", "frame_skip", "frame_size", "stack_size")),
        ("max_episode_steps", 2**31),
        ("no_op_max", 0),
        ("frame_skip", 1),
        ("frame_size", 0),
        ("stack_size", 0),
        ("sticky_action_probability", 1.0),
        ("sticky_action_probability", -0.1),
        ("max_episode_steps", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ConfigurationError, match=f"^env.{field} = "):
        AtariConfig(**{field: value})


def test_a_configuration_needs_no_backend_and_refuses_an_unknown_one():
    # in a process of its own: nothing imported yet, and no checked signatures to refuse before the configuration does
    code = (
        "import sys\n"
        "from metagrad.actors.envs.atari import AtariConfig\n"
        "AtariConfig(game='Breakout')\n"
        "assert not {'envpool', 'ale_py', 'cv2', 'gymnasium'} & set(sys.modules)\n"
        "AtariConfig(backend='gym')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        "metagrad.errors.ConfigurationError: env.backend = 'gym': "
        "one of ('envpool', 'ale', 'ale-snapshots'); envpool is the default"
    )


def test_a_game_knows_the_name_of_its_rom():
    assert AtariConfig(game="MsPacman").rom_name == "ms_pacman"
