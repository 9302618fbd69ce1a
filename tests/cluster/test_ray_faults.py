import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayTaskError, WorkerCrashedError

from metagrad.cluster.on_ray.faults import LOST_ACTOR, LOST_TASK, first_line


@pytest.mark.parametrize(
    ("error", "is_lost_actor", "is_lost_task"),
    [
        (ActorDiedError(), True, False),
        (ActorUnavailableError("away", b"0" * 16), True, False),
        (NodeDiedError("gone"), True, True),
        (WorkerCrashedError(), True, True),
        (RayTaskError("f", "Traceback", ValueError("its own")), False, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_ones_own_is_no_loss(error: Exception, is_lost_actor: bool, is_lost_task: bool) -> None:
    assert isinstance(error, LOST_ACTOR) == is_lost_actor
    assert isinstance(error, LOST_TASK) == is_lost_task


def test_one_line_says_what_happened() -> None:
    assert first_line(ValueError("\n first \nsecond")) == "first "
    assert first_line(ValueError()) == "ValueError"
