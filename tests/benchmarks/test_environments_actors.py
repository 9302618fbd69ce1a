import pytest
import torch

from benchmarks import environments_actors as subject
from benchmarks.harness import Timing
from metagrad.actors.envs.snake import SnakeConfig


@pytest.mark.slow
def test_every_actor_steps_its_share_and_ends_with_the_block():
    with subject.snake_actors(2) as actors:
        for batch_size in (4, 3):  # new boards; also shares that are not of one size
            actors.prepare(SnakeConfig(), torch.zeros(10, batch_size, dtype=torch.int64))
            timing = actors.run()
            assert isinstance(timing, Timing)
            assert timing.wall_s > 0
            assert timing.cpu_s > 0
        assert all(process.is_alive() for process in actors.processes)
    assert [process.exitcode for process in actors.processes] == [0, 0]


def test_an_actor_that_fails_ends_the_measurement(capfd):
    with subject.snake_actors(1) as actors:
        with pytest.raises(EOFError):
            actors.prepare(SnakeConfig(), torch.full((1, 2), 9))  # no such action
        actors.processes[0].join()
        assert actors.processes[0].exitcode == 1
    assert "IndexError" in capfd.readouterr().err


class Orders:
    """The actor's end of the pipe: two orders, then the end."""

    def __init__(self, *orders):
        self.orders, self.answers = list(orders), []

    def recv(self):
        if not self.orders:
            raise EOFError
        return self.orders.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def test_a_run_steps_through_all_actions_of_the_share(monkeypatch):
    stepped = []

    class Counting:
        def reset(self):
            stepped.append("reset")

        def step(self, action):
            stepped.append(action.tolist())

    asked = []

    def make(config, *, batch_size, seed, **_):
        asked.append((batch_size, seed))
        return Counting()

    monkeypatch.setattr(SnakeConfig, "make", make)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.append(count))
    orders = Orders((SnakeConfig(), torch.tensor([[1, 2], [3, 0]]).numpy()), None)
    subject.step_shares(orders, seed=7)
    assert asked == [1, (2, 7)]
    assert stepped == ["reset", [1, 2], [3, 0], [1, 2], [3, 0]]
    assert len(orders.answers) == 2
    assert all(seconds >= 0 for seconds in orders.answers)
