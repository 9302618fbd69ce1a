"""Holds every use of a name that Ray Tune's documentation does not promise; without one of them Tune is refused."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.tune.schedulers import PopulationBasedTraining

from metagrad.cluster.on_ray.private import TESTED
from metagrad.errors import refusal

_NAME = "_checkpoint_or_exploit"
SeedOf = Callable[[Any, int], Sequence[int]]
"""(trial, updates of the scheduler's clock) to the seed of the choices that are made for the trial then."""


class SeededScheduler(PopulationBasedTraining):
    """Makes Tune's choices depend on a seed alone, so that they can be made again; Tune draws from global generators.

    Raises:
        ConfigurationError: this Tune makes its choices elsewhere.
    """

    def __init__(self, seed_of: SeedOf, **options: Any):
        if not hasattr(PopulationBasedTraining, _NAME):
            rule = f"its PopulationBasedTraining has no {_NAME}, which metagrad seeds"
            remedy = f"install a release that was tested: pip install 'ray[tune]=={TESTED}.*'"
            raise refusal("ray", ray.__version__, rule, remedy)
        super().__init__(**options)
        self._seed_of = seed_of

    def _checkpoint_or_exploit(self, trial: Any, *others: Any) -> None:
        with _seeded(self._seed_of(trial, int(self._trial_state[trial].last_perturbation_time))):
            super()._checkpoint_or_exploit(trial, *others)


class PausedCheckpoints:
    """Stands for the checkpoint manager of a paused trial: what the scheduler puts in, `take` returns.

    That is how it says whose checkpoint a trial is to go on from.
    """

    def __init__(self, checkpoint_config: Any):
        self.checkpoint_config = checkpoint_config
        self._latest_checkpoint_result: Any = None

    def take(self) -> Any:
        """Return what was put in since the last call; None: nothing."""
        found, self._latest_checkpoint_result = self._latest_checkpoint_result, None
        return found


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed the generators of Python and numpy, from which Tune draws, for a while."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    word = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
