import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.actors.envs.task_streams import draw, make_streams, splitmix64

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def written_out(state, count):
    """SplitMix64 in whole numbers of any size."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def test_published_outputs():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    outputs = splitmix64(torch.tensor(1234567), torch.arange(1, 5))
    assert [x % 2**64 for x in outputs.tolist()] == expected


@pytest.mark.parametrize("device", DEVICES)
@given(start=st.integers(-(2**63), 2**63 - 1))
def test_outputs_are_those_of_whole_numbers(device, start):
    outputs = splitmix64(torch.tensor(start, device=device), torch.arange(1, 20, device=device))
    assert [x % 2**64 for x in outputs.tolist()] == written_out(start % 2**64, 19)


def test_numbers_continue_and_depend_on_the_own_seed_alone():
    together = make_streams([3, 8, 3], CPU)
    first, after = draw(together, 5)
    second, _ = draw(after, 4)
    alone, _ = draw(make_streams([8], CPU), 9)
    assert torch.equal(torch.cat((first, second), 1)[1:2], alone)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_numbers_are_uniform_and_independent():
    numbers, _ = draw(make_streams(list(range(100)), CPU), 1_000)
    assert numbers.dtype == torch.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())
    count = numbers.numel()
    shares = np.histogram(numbers.numpy(), bins=50, range=(0, 1))[0] / count
    assert np.abs(shares - 0.02).max() < 5 * np.sqrt(0.02 * 0.98 / count)
    for other in (numbers.roll(1, 0), numbers.roll(1, 1)):  # of the stream beside, and the next one
        covariance = ((numbers - 0.5) * (other - 0.5)).mean()
        assert abs(covariance) < 5 / 12 / np.sqrt(count)
