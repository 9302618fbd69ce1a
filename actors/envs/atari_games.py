"""Lists the Atari games that both backends ship, and suggests names where another one is asked for.

The list is a table since importing EnvPool takes a second, and checking a configuration must take none. The tests
compare it with what the installed EnvPool and ale-py ship. ale-py alone has four more (Combat, Joust, MazeCraze,
Warlords), all for two players; they are left out.
"""

import difflib
import re

_ROM_NAMES = """
adventure air_raid alien amidar assault asterix asteroids atlantis atlantis2 backgammon bank_heist basic_math
battle_zone beam_rider berzerk blackjack bowling boxing breakout carnival casino centipede chopper_command
crazy_climber crossbow darkchambers defender demon_attack donkey_kong double_dunk earthworld elevator_action enduro
entombed et fishing_derby flag_capture freeway frogger frostbite galaxian gopher gravitar hangman haunted_house hero
human_cannonball ice_hockey jamesbond journey_escape kaboom kangaroo keystone_kapers king_kong klax koolaid krull
kung_fu_master laser_gates lost_luggage mario_bros miniature_golf montezuma_revenge mr_do ms_pacman name_this_game
othello pacman phoenix pitfall pitfall2 pong pooyan private_eye qbert riverraid road_runner robotank seaquest
sir_lancelot skiing solaris space_invaders space_war star_gunner superman surround tennis tetris tic_tac_toe_3d
time_pilot trondead turmoil tutankham up_n_down venture video_checkers video_chess video_cube video_pinball
wizard_of_wor word_zapper yars_revenge zaxxon
""".split()

# "MsPacman" -> "ms_pacman"
GAMES: dict[str, str] = {"".join(part.capitalize() for part in rom.split("_")): rom for rom in _ROM_NAMES}

# ale-py's copies of these go on differently: its states lack part of what their screens are drawn from.
GAMES_WITHOUT_EXACT_COPIES = frozenset({"Qbert", "Tetris", "TicTacToe3d"})


def close_games(name: str, count: int = 3) -> list[str]:
    """Return the games named nearest to `name`, best first; ALE/Pong-v5, ms_pacman and the like are understood."""
    plain = re.sub(r"^ale/|noframeskip|deterministic|-ram|-v\d+$|[^a-z0-9]", "", name.lower())
    lowered = {game.lower(): game for game in GAMES}
    return [lowered[match] for match in difflib.get_close_matches(plain, lowered, n=count, cutoff=0.5)]
