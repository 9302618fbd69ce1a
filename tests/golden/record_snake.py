"""Records Snake episodes of Jumanji, the reference that actors/envs/snake.py is compared with.

The stored files came from jumanji 1.1.2, jax 0.10.2 and numpy 2.4.6, installed apart from this project's environment
(jumanji is no dependency of it). Written again, next to this script, by

    python tests/golden/record_snake.py

Each file holds B boards and T steps with SAME_STEP autoreset: the actions of four policies, where Jumanji put heads and
fruits, and what it returned. `decode` gives the arrays back as they were recorded.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
RUNNING, DIED, BOARD_FULL, TIME_LIMIT = range(4)

Arrays = dict[str, np.ndarray]


class Recording(NamedTuple):
    """What to record."""

    rows: int
    columns: int
    time_limit: int
    batch_size: int
    num_steps: int
    seed: int


RECORDINGS = {
    "snake_6x6": Recording(rows=6, columns=6, time_limit=500, batch_size=8, num_steps=1000, seed=1),
    "snake_12x12": Recording(rows=12, columns=12, time_limit=300, batch_size=8, num_steps=620, seed=2),
    "snake_5x7": Recording(rows=5, columns=7, time_limit=40, batch_size=8, num_steps=400, seed=3),
    "snake_4x3": Recording(rows=4, columns=3, time_limit=50, batch_size=8, num_steps=500, seed=4),
    "snake_2x2": Recording(rows=2, columns=2, time_limit=12, batch_size=8, num_steps=200, seed=5),
    "snake_1x5": Recording(rows=1, columns=5, time_limit=9, batch_size=8, num_steps=100, seed=6),
}


def hamiltonian_actions(rows: int, columns: int) -> np.ndarray | None:
    """Action of every cell that leads around the whole board; None where there is no such cycle."""
    if min(rows, columns) < 2 or (rows % 2 and columns % 2):
        return None
    if rows % 2:  # the same path with the board mirrored along its diagonal: up <-> left, right <-> down
        return np.array([3, 2, 1, 0])[hamiltonian_actions(columns, rows).T]
    action = np.zeros((rows, columns), dtype=int)  # column 0 leads back up
    action[0::2] = 1
    action[0::2, -1] = 2
    action[1::2] = 3
    action[1:-1:2, 1] = 2
    action[1:, 0] = 0
    return action


def choose_action(policy: int, body_state: np.ndarray, head: tuple, fruit: tuple, rng: np.random.Generator) -> int:
    """One of four policies: 0 uniform, 1 avoids death, 2 avoids death and nears the fruit, 3 follows the cycle."""
    rows, columns = body_state.shape
    cycle = hamiltonian_actions(rows, columns)
    if policy == 3 and cycle is not None:
        return int(cycle[head])
    target = np.array(head) + MOVES
    is_inside = ((target >= 0) & (target < (rows, columns))).all(axis=1)
    target = target % (rows, columns)
    is_safe = is_inside & (body_state[target[:, 0], target[:, 1]] <= 1)
    if policy == 0 or not is_safe.any() or rng.random() < 0.02:
        return int(rng.integers(4))
    distance = np.abs(target - fruit).sum(axis=1) if policy >= 2 else np.zeros(4)
    return int(np.argmin(np.where(is_safe, distance + 0.5 * rng.random(4), np.inf)))


def compiled(recording: Recording) -> tuple[Any, Any]:
    """Jumanji's `reset(key)` and, with SAME_STEP autoreset, `step(state, action)`, each for one batch.

    `step` returns the new state and timestep, and the state in which the move itself ended.
    """
    import jax
    from jumanji.environments import Snake

    environment = Snake(recording.rows, recording.columns, recording.time_limit)

    def step(state: Any, action: Any) -> tuple[Any, Any, Any, Any]:
        moved, timestep = environment.step(state, action)
        fresh, first = environment.reset(jax.random.split(moved.key)[0])
        done = timestep.last()
        state = jax.tree_util.tree_map(lambda a, b: jax.numpy.where(done, a, b), fresh, moved)
        grid = jax.numpy.where(done, first.observation.grid, timestep.observation.grid)
        return state, timestep, grid, moved

    return jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(step))


def play(recording: Recording) -> Arrays:
    """Play `recording` on Jumanji; time-major arrays, `head`, `fruit` and `observation` with T+1 rows."""
    import jax

    rng = np.random.default_rng(recording.seed)
    reset, step = compiled(recording)
    state, timestep = reset(jax.random.split(jax.random.PRNGKey(recording.seed), recording.batch_size))
    columns, cells = recording.columns, recording.rows * recording.columns

    def cell(position: Any) -> np.ndarray:
        return np.asarray(position.row) * columns + np.asarray(position.col)

    trace: dict[str, list] = {
        "head": [cell(state.head_position)],
        "fruit": [cell(state.fruit_position)],
        "observation": [np.asarray(timestep.observation.grid)],
    }
    for _ in range(recording.num_steps):
        body_state = np.asarray(state.body_state)
        heads = [divmod(int(c), columns) for c in trace["head"][-1]]
        fruits = [divmod(int(c), columns) for c in trace["fruit"][-1]]
        boards = zip(body_state, heads, fruits, strict=True)
        action = np.array([choose_action(i % 4, *board, rng) for i, board in enumerate(boards)])
        state, timestep, grid, moved = step(state, action)
        is_terminal = np.asarray(timestep.discount) == 0
        is_full = np.asarray(moved.length) == cells
        is_late = np.asarray(moved.step_count) >= recording.time_limit
        ending = np.select([~is_terminal, is_full, is_late], [RUNNING, BOARD_FULL, TIME_LIMIT], DIED)
        row = {
            "action": action,
            "reward": np.asarray(timestep.reward),
            "is_terminal": is_terminal,
            "ending": ending,
            "head": cell(state.head_position),
            "fruit": cell(state.fruit_position),
            "observation": np.asarray(grid),
        }
        for name, value in row.items():
            trace.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in trace.items()}


def encode(recording: Recording, trace: Arrays) -> Arrays:
    """`trace` in few bytes: the four binary channels as bits, the fifth as numbers of its distinct values."""
    observation = trace["observation"]
    values, index = np.unique(observation[..., 4], return_inverse=True)
    small = ("action", "reward", "is_terminal", "ending", "head", "fruit")
    return {name: trace[name].astype(np.uint8) for name in small} | {
        "rules": np.array([recording.rows, recording.columns, recording.time_limit]),
        "planes": np.packbits(observation[..., :4].astype(bool)),
        "order_values": values,
        "order_index": index.reshape(observation.shape[:-1]).astype(np.uint16),
    }


def decode(stored: Arrays) -> Arrays:
    """The arrays of `play` and "rules" from those of `encode`."""
    index = stored["order_index"]
    planes = np.unpackbits(stored["planes"], count=index.size * 4).reshape(*index.shape, 4).astype(np.float32)
    order = stored["order_values"][index][..., None]
    trace = {name: stored[name] for name in ("rules", "action", "ending", "head", "fruit")}
    return trace | {
        "reward": stored["reward"].astype(np.float32),
        "is_terminal": stored["is_terminal"].astype(bool),
        "observation": np.concatenate((planes, order), axis=-1),
    }


def main() -> None:
    """Record all of `RECORDINGS` next to this script."""
    for name, recording in RECORDINGS.items():
        trace = play(recording)
        stored = encode(recording, trace)
        for key, value in decode(stored).items():
            assert key == "rules" or np.array_equal(value, trace[key]), f"{name}: {key} is not stored exactly"
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **stored)
        endings = np.bincount(trace["ending"].ravel(), minlength=4)
        print(
            f"{path.name}: {trace['reward'].sum():.0f} fruits, steps by ending (see RUNNING ... TIME_LIMIT): {endings}"
        )


if __name__ == "__main__":
    main()
