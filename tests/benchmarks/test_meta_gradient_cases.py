import json

import numpy as np
import pytest
import torch

from benchmarks.meta_gradient_cases import FORMS, SETTINGS, STEPS, MetaUpdate
from metagrad.actors.rollout import probe
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari

EXPERIMENTS = {"nature": atari, "snake": snake_6x6}


@pytest.fixture(params=SETTINGS)
def update(request):
    return MetaUpdate(SETTINGS[request.param]._replace(environments=2))


def test_all_forms_give_one_meta_gradient(update):
    retain, recompute, reference = (update.form(name, 3)() for name in FORMS)
    assert reference[:2].abs().min() > 0  # gamma and lambda
    torch.testing.assert_close(retain, reference, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(recompute, reference, rtol=1e-3, atol=1e-6)


def test_an_unknown_form_is_refused(update):
    with pytest.raises(ValueError, match="form = 'forward': must be one of"):
        update.form("forward", 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_the_experiments(name):
    setting, experiment = SETTINGS[name], EXPERIMENTS[name]()
    spec = probe(experiment.env)
    assert setting.network == experiment.network
    assert setting.observation_shape == spec.observation_shape
    assert setting.sees_bytes == (spec.observation_dtype == torch.uint8)
    assert setting.num_actions == spec.num_actions
    assert (STEPS, setting.environments) == (experiment.rollout_length, experiment.environments)


def test_the_file_holds_the_numbers_of_the_meta_update(update, tmp_path):
    update.write(tmp_path / "update.npz")
    data = np.load(tmp_path / "update.npz")
    constants = json.loads(str(data["constants"]))
    assert [tuple(shape) for shape in constants["shapes"]] == list(update.layout.shapes)
    assert constants["adam"]["eps_root"] > 0
    assert int(data["count"]) == update.state.updates
    for name, tensor in {
        "theta": update.theta,
        "first": update.state.moments[0],
        "second": update.state.moments[1],
        "eta": update.eta,
        "observation": update.batch.observation,
        "is_terminal": update.batch.is_terminal,
    }.items():
        assert np.array_equal(data[name], tensor.cpu().numpy()), name


def test_equal_settings_give_equal_numbers(update):
    again = MetaUpdate(SETTINGS["snake" if update.layout.size < 1_000_000 else "nature"]._replace(environments=2))
    assert torch.equal(again.theta, update.theta)
    assert torch.equal(again.batch.observation, update.batch.observation)
