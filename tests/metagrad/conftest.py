"""Shared fixtures: trajectories with every kind of row, frozen constants, finite differences, covering tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations, product
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from metagrad import autodiff
from metagrad.types import Trajectory


class FrozenConstants:
    """Stand-in for `autodiff.stop_gradient` that records its values once and then replays them in the same order.

    A function evaluated under `replay` is the map in which every stop-gradient quantity keeps its base-point value:
    the map whose derivative the library claims to compute.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    @contextmanager
    def _as(self, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        original = autodiff.stop_gradient
        autodiff.stop_gradient = function
        try:
            yield
        finally:
            autodiff.stop_gradient = original

    @contextmanager
    def record(self) -> Iterator[None]:
        def recorded(x: Tensor) -> Tensor:
            self.values.append(x.detach().clone())
            return self.values[-1]

        with self._as(recorded):
            yield

    @contextmanager
    def replay(self) -> Iterator[None]:
        remaining = iter(self.values)

        def replayed(x: Tensor) -> Tensor:
            value = next(remaining)
            assert value.shape == x.shape
            return value

        with self._as(replayed):
            yield
        assert next(remaining, None) is None, "the replayed map took another path than the recorded one"


@pytest.fixture(scope="session")
def freeze() -> Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(function, base point) -> the same function with its stop-gradient quantities frozen at the base point."""

    def freeze_at(function: Callable[[Tensor], Tensor], base: Tensor) -> Callable[[Tensor], Tensor]:
        constants = FrozenConstants()
        with constants.record():
            function(base)

        def frozen(x: Tensor) -> Tensor:
            with constants.replay():
                return function(x)

        return frozen

    return freeze_at


def _ridders(function: Callable[[float], float], step: float, levels: int = 7) -> tuple[float, float]:
    """(f'(0), error estimate) by Ridders' extrapolation of central differences; blind to what the answer should be."""
    best, error = 0.0, float("inf")
    table: list[list[float]] = []
    for level in range(levels):
        h = step / 4**level  # far down, since ReLU kinks may lie close by
        row = [(function(h) - function(-h)) / (2 * h)]
        for column, previous in enumerate(table[-1] if table else []):
            factor = 16.0 ** (column + 1)
            row.append((factor * row[column] - previous) / (factor - 1.0))
            estimate = max(abs(row[-1] - row[-2]), abs(row[-1] - previous))
            if estimate < error:
                best, error = row[-1], estimate
        table.append(row)
        if error <= 1e-9 * abs(best):  # steps and orders agree, far below what any test asks for
            break
    return best, error


@contextmanager
def _unchecked() -> Iterator[None]:
    """Switch the checks of types and shapes off: they took two thirds of the time of a small loss."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def finite_differences() -> Callable[..., Tensor]:
    """(scalar function, point, directions, first step) -> directional derivatives, accurate by their own estimate."""

    def derivatives(
        function: Callable[[Tensor], Tensor], point: Tensor, directions: Tensor | None = None, step: float = 0.05
    ) -> Tensor:
        directions = torch.eye(len(point), dtype=point.dtype) if directions is None else directions
        function(point)
        with _unchecked():  # as at this point, so at all others
            results = [
                _ridders(lambda t, direction=direction: float(function(point + t * direction)), step)
                for direction in directions
            ]
        values = torch.tensor([value for value, _ in results], dtype=point.dtype)
        errors = torch.tensor([error for _, error in results], dtype=point.dtype)
        assert errors.norm() <= 5e-7 * values.norm(), f"finite differences did not converge: {values}, {errors}"
        return values

    return derivatives


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    """(generator, steps, batch, observation shape, actions) -> float64 trajectory with every kind of row.

    Column 0: a terminal step and the reset row after it; column 1: a truncated step and the reset row after it;
    column 2: a terminal step followed by the next episode at once; the others: nothing. Needs 3 steps and 3 columns.
    """

    def make(
        generator: torch.Generator, steps: int = 5, batch: int = 4, shape: tuple[int, ...] = (3,), actions: int = 3
    ) -> Trajectory:
        is_terminal = torch.zeros(steps, batch, dtype=torch.bool)
        is_truncated, invalid = is_terminal.clone(), is_terminal.clone()
        first, second, third = (int(torch.randint(steps - 1, (), generator=generator)) for _ in range(3))
        is_terminal[first, 0] = is_truncated[second, 1] = is_terminal[third, 2] = True
        invalid[first + 1, 0] = invalid[second + 1, 1] = True
        return Trajectory(
            observation=torch.randn(steps + 1, batch, *shape, generator=generator, dtype=torch.float64),
            action=torch.randint(actions, (steps, batch), generator=generator),
            reward=torch.randn(steps, batch, generator=generator, dtype=torch.float64),
            is_terminal=is_terminal,
            is_truncated=is_truncated,
            valid=~invalid,
            behaviour_log_prob=torch.zeros(steps, batch, dtype=torch.float64),
            policy_version=0,
        )

    return make


def all_pairs(**axes: tuple[object, ...]) -> list[tuple[object, ...]]:
    """Rows in which every two values of different axes meet at least once; greedy, always the same."""
    rows = list(product(*(range(len(values)) for values in axes.values())))
    missing = {pair for row in rows for pair in combinations(enumerate(row), 2)}
    table = []
    while missing:
        best = max(rows, key=lambda row: sum(pair in missing for pair in combinations(enumerate(row), 2)))
        missing -= set(combinations(enumerate(best), 2))
        table.append(tuple(values[i] for values, i in zip(axes.values(), best, strict=True)))
    return table


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.pairs(a=(...), b=(...))` parametrizes a test over a covering table instead of the full product."""
    for marker in metafunc.definition.iter_markers("pairs"):
        metafunc.parametrize(tuple(marker.kwargs), all_pairs(**marker.kwargs))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pairs(**axes): parametrize over a table in which every two values meet")


@pytest.fixture
def setting(request: pytest.FixtureRequest, make_trajectory: Callable[..., Trajectory]) -> Callable[..., Any]:
    """Make a `Setting` of the test's module, with batches of `make_trajectory`."""
    return partial(request.module.Setting, make_trajectory)


@pytest.fixture(scope="session")
def assert_relative() -> Callable[[Tensor, Tensor, float], None]:
    """Check that a tensor is within a tolerance of another one, relative to its norm."""

    def check(actual: Tensor, expected: Tensor, tolerance: float) -> None:
        error = float((actual - expected).norm() / expected.norm())
        assert error <= tolerance, f"relative error {error:.2e}: {actual} against {expected}"

    return check
