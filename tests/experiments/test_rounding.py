from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import actor_setups
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.mixed_precision.rounding import LEARNT, Case, cases, measuring, rounding_errors
from metagrad.learner.schedule import Lockstep
from metagrad.networks import SnakeCnn

CPU = torch.device("cpu")
NS = (1, 3)


def tiny(updates: int = 3) -> Experiment:
    return replace(
        snake_6x6(),
        env=SnakeConfig(rows=4, columns=4, time_limit=20),
        network=SnakeCnn(channels=8, policy_hidden=16, value_hidden=16),
        environments=8,
        updates=updates,
        seed=1,
        topology="colocated",
        learner_threads=1,
    )


def test_every_estimator_is_measured_once() -> None:
    assert [str(case) for case in cases([1, 3])] == [
        *("n-step, n = 1", "bmg, n = 1"),
        *("n-step, n = 3", "mix, n = 3", "trace, n = 3", "bmg, n = 3"),
    ]


def test_ways_differ_from_the_run_in_look_ahead_precision_and_what_is_learnt() -> None:
    whole = measuring(tiny(), Case(5, "bmg"), "bf16-mixed")
    assert (whole.meta.n, whole.meta.estimator, whole.meta.bootstrap.updates) == (5, "n-step", 1)
    assert measuring(tiny(), Case(3, "trace"), "float32").meta.mu == 0.9
    assert all(getattr(whole.meta_parameters, name).is_learnt for name in LEARNT)
    back = replace(whole, meta=tiny().meta, meta_parameters=tiny().meta_parameters, precision="float32")
    assert back == tiny()


def test_float32_is_near_float64_and_bfloat16_is_farther() -> None:
    (window,) = rounding_errors(tiny(), 1, NS)
    assert 0.0 < window["inner"]["float32"]["error"] < 1e-5
    assert 1e-4 < window["inner"]["bf16-mixed"]["error"] < 0.2
    assert window["inner"]["bf16-mixed"]["cosine"] > 0.98
    assert list(window["meta"]) == [str(case) for case in cases(NS)]
    for gradients in window["meta"].values():
        exact = torch.tensor(gradients["float64"], dtype=torch.float64)
        off = {name: ((torch.tensor(x) - exact).norm() / exact.norm()).item() for name, x in gradients.items()}
        assert off["float32"] < 1e-3
        assert 1e-4 < off["bf16-mixed"]
        assert exact[2] == 0.0, "critics of their own do not reach the policy"


def test_the_meta_gradient_is_that_of_the_run() -> None:
    """Measuring four hyper-parameters, where the run is, gives γ the derivative that the run has."""
    experiment, meta = tiny(), tiny().meta
    swift = replace(meta.optimizer, learning_rate=0.3, eps_root=0.0)  # γ is elsewhere by then
    experiment = replace(experiment, meta=replace(meta, optimizer=swift))
    (window,) = rounding_errors(experiment, 1, (1,))
    algorithm = experiment.algorithm(probe(experiment.env))
    state = algorithm.init(experiment.seed, CPU)
    with closing(ColocatedActors(actor_setups(experiment, CPU, 0), None, experiment.rollouts_per_batch)) as actors:
        sample = Lockstep(actors, CPU).sample
        for _ in range(experiment.updates):
            state, _ = algorithm.update(state, sample)
        expected = algorithm.estimate_meta_gradient(state, sample).item()
    assert abs(state.eta.item() - algorithm.init(experiment.seed, CPU).eta.item()) > 0.1
    assert window["meta"]["n-step, n = 1"]["float32"][0] == pytest.approx(expected, rel=1e-4)


def test_rollouts_are_shared_by_all_ways_that_act_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[int] = Counter()
    sample = ColocatedActors.sample
    monkeypatch.setattr(ColocatedActors, "sample", lambda self, *x: (asked.update([x[1]]), sample(self, *x))[1])
    rounding_errors(tiny(updates=1), 1, NS)
    run = {0: 1, 1: 1}
    window = {0: 1, 1: 1, 2: 1, 3: 1}
    targets = {2: 1, 4: 1}  # after n = 1 and n = 3 updates
    assert asked == Counter(run) + Counter(window) + Counter(targets)
