"""Write the policy of a run to a file that needs metagrad no more, torch's `.pt2` or ONNX, or a rule to an `.npz`."""

import json
import logging
import warnings
from importlib.util import find_spec
from io import BytesIO
from typing import Any, Literal

import torch

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import to_json
from metagrad.cluster.run.trained import TrainedRule, TrainedRun
from metagrad.errors import require
from metagrad.observations import MixedShape
from metagrad.rule_files import encoded_rule

Format = Literal["torch", "onnx", "rule"]
SIGNATURE = "signature.json"
"""Names the signature among the extra files of a .pt2 file and among the properties of an ONNX model."""
_ENDINGS = {"torch": ".pt2", "onnx": ".onnx", "rule": ".npz"}
_INPUT, _OUTPUT, _STATE, _NEXT, _BATCH = "observation", "log_probs", "state", "next_state", "batch"


def require_format(format: Format, output: str) -> None:
    """Refuse a format that cannot be written here, and a file whose ending says another one.

    Raises:
        ConfigurationError: it is one.
    """
    ending = _ENDINGS[format]
    require(output.endswith(ending), "output", output, f"must end in {ending} (--format {format})", "name such a file")
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        rule = f"needs the package {package}, which is not installed"
        require(find_spec(package) is not None, "format", format, rule, "pip install 'metagrad[onnx]'")


def signature(run: TrainedRun) -> dict[str, Any]:
    """Return what goes into an exported policy and what comes out of it, as plain JSON.

    A recurrent one has its state among both: zeros first, and where an episode begins. "pictures" are the shapes of
    those with which a flat observation begins, if any; other numbers follow.
    """
    dtype = str(run.spec.observation_dtype).removeprefix("torch.")
    shape = run.spec.observation_shape
    inputs: dict[str, Any] = {_INPUT: {"dtype": dtype, "shape": [_BATCH, *shape]}}
    if isinstance(shape, MixedShape):
        inputs[_INPUT]["pictures"] = [list(picture) for picture in shape.pictures]
    outputs = {_OUTPUT: {"dtype": "float32", "shape": [_BATCH, run.spec.num_actions]}}
    if size := run.network.state_size:
        inputs[_STATE] = outputs[_NEXT] = {"dtype": "float32", "shape": [_BATCH, size]}
    return {
        "inputs": inputs,
        "outputs": outputs,
        "actions": list(run.spec.action_names),
        "environment": run.spec.name,
        "experiment": run.experiment.name,
        "update": run.update,
    }


def format_of(experiment: BaseExperiment, format: Format | None) -> Format:
    """Return the format that a run is written in; None: the default of its kind.

    Raises:
        ConfigurationError: a rule is to be written as a policy, or the other way round.
    """
    is_rule = format == "rule" or (format is None and not experiment.has_policy)
    what = "a policy" if experiment.has_policy else "an update rule"
    require(is_rule != experiment.has_policy, "format", format, f"the run has learnt {what}", "leave it out")
    return "rule" if is_rule else format or "torch"


def exported_rule(experiment: BaseExperiment, trained: TrainedRule) -> bytes:
    """Return the content of a rule's file, which says of which run it is."""
    came_from = {"update": trained.update, "lifetimes": trained.lifetimes, "experiment": to_json(experiment)}
    return encoded_rule(trained.rule, trained.weights, came_from)


def exported(run: TrainedRun, format: Format) -> bytes:
    """Return the content of a file in a format that `require_format` takes."""
    return _onnx(run) if format == "onnx" else _torch(run)


def _program(run: TrainedRun) -> torch.export.ExportedProgram:
    given = [torch.zeros(2, *run.spec.observation_shape, dtype=run.spec.observation_dtype)]
    if (state := run.network.fresh_state(2)) is not None:
        given.append(state)
    batch = torch.export.Dim(_BATCH, min=1)
    shapes = {name: {0: batch} for name, _ in zip((_INPUT, _STATE), given, strict=False)}
    with torch.no_grad():
        return torch.export.export(run.policy, tuple(given), dynamic_shapes=shapes)


def _torch(run: TrainedRun) -> bytes:
    content = BytesIO()
    torch.export.save(_program(run), content, extra_files={SIGNATURE: json.dumps(signature(run))})
    return content.getvalue()


def _onnx(run: TrainedRun) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here uses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own, about itself
        inputs, outputs = (list(signature(run)[kind]) for kind in ("inputs", "outputs"))
        program = torch.onnx.export(_program(run), dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    model.metadata_props.add(key=SIGNATURE, value=json.dumps(signature(run)))
    content: bytes = model.SerializeToString()
    return content
