import importlib.util
import json
import pathlib

import pytest

from metagrad.actors.envs.atari_games import GAMES, close_games


def folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return pathlib.Path(spec.origin).parent


def test_the_games_are_those_that_envpool_ships():
    assert set(GAMES.values()) == {rom.stem for rom in (folder("envpool_assets") / "atari" / "roms").glob("*.bin")}


def test_the_games_are_those_that_ale_ships_less_the_four_for_two_players():
    shipped = {name.removesuffix(".bin") for name in json.loads((folder("ale_py") / "roms" / "md5.json").read_text())}
    assert shipped - set(GAMES.values()) == {"combat", "joust", "maze_craze", "warlords"}
    assert set(GAMES.values()) <= shipped


def test_game_names_are_written_like_envpools_ids():
    assert len(GAMES) == 104
    assert {"Pong", "MsPacman", "Qbert", "UpNDown", "TicTacToe3d"} <= set(GAMES)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("pong", "Pong"), ("UpNDwon", "UpNDown"), ("Space Invaders", "SpaceInvaders"), ("ALE/Qbert-v5", "Qbert")],
)
def test_the_nearest_game_comes_first(name, meant):
    assert close_games(name)[0] == meant
    assert close_games(name, count=1) == [meant]


def test_a_name_like_no_other_has_no_near_game():
    assert close_games("1942") == []
