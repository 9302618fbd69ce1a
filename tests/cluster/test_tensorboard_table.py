"""TensorBoard's table of runs (HParams), computed by TensorBoard itself from the event files of two runs."""

from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from metagrad.cluster.run.events import EventLog

RETURN = "episode/return_mean"


def test_two_runs_are_compared_by_what_differs_and_their_final_returns(tmp_path: Path) -> None:
    for name, rate, returns in (("one", 1e-4, (1.0, 2.0)), ("two", 3e-4, (3.0, 5.0))):
        (tmp_path / name).mkdir()
        options = {"optimizer.learning_rate": rate, "meta_parameters.gamma.initial": 0.8, "env.type": "SnakeConfig"}
        for start, value in zip((0, 10), returns, strict=True):  # the second row by a process that has continued it
            with EventLog(tmp_path / name, start, options) as log:
                log.scalars({RETURN: value, "eta/gamma": value / 10}, start + 10)
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(tmp_path))))
    request = RequestContext()
    sources = (context.hparams_metadata(request, ""), context.hparams_from_data_provider(request, "", 100))
    experiment = context.experiment_from_metadata(request, "", True, *sources)
    assert {info.name: info.differs for info in experiment.hparam_infos} == {
        "optimizer.learning_rate": True,
        "meta_parameters.gamma.initial": False,
        "env.type": False,
    }
    columns = [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    assert {column.metric.tag for column in columns} == {RETURN, "eta/gamma"}
    query = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[0, 1, 2, 3], col_params=columns
    )
    groups = Handler(request, context, "", query).run().session_groups
    table = {
        group.name: (
            group.hparams["optimizer.learning_rate"].number_value,
            {metric.name.tag: (metric.value, metric.training_step) for metric in group.metric_values}[RETURN],
        )
        for group in groups
    }
    assert table == {"one": (1e-4, (2.0, 20)), "two": (3e-4, (5.0, 20))}
