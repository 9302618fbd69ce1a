"""The papers' experiments and studies as data: names and what describes them."""

from collections.abc import Callable

from metagrad.cluster.run_config import BaseExperiment
from metagrad.cluster.studies import Study
from metagrad.experiments import (
    atari_study,
    compositional_bias,
    discounting_chain,
    hessian_bias,
    ipd,
    mrp,
    mrp_bias_variance,
    peek_study,
    snake12_choices,
    snake12_study,
    snake_study,
    tabular_lirpg,
    tabular_maml,
)
from metagrad.experiments.atari import atari, atari_released
from metagrad.experiments.discounting_chain_training import discounting_chain as discounting_chain_experiment
from metagrad.experiments.ipd_training import ipd as ipd_experiment
from metagrad.experiments.self_tuned import lirpg_atari, lirpg_snake, stacx, stacx_impala
from metagrad.experiments.snake import demo, snake_6x6
from metagrad.experiments.snake_12x12 import snake_12x12

EXPERIMENTS: dict[str, Callable[[], BaseExperiment]] = {
    "demo": demo,
    "snake-6x6": snake_6x6,
    "snake-12x12": snake_12x12,
    "atari": atari,
    "atari-released": atari_released,
    "stacx": stacx,
    "stacx-impala": stacx_impala,
    "lirpg-atari": lirpg_atari,
    "lirpg-snake": lirpg_snake,
    "discounting-chain": discounting_chain_experiment,
    "ipd": ipd_experiment,
}

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        tabular_maml.STUDY,
        tabular_lirpg.STUDY,
        tabular_lirpg.RELEASED_STUDY,
        hessian_bias.STUDY,
        compositional_bias.STUDY,
        mrp.STUDY,
        mrp_bias_variance.STUDY,
        discounting_chain.STUDY,
        ipd.STUDY,
        snake_study.STUDY,
        snake12_study.STUDY,
        snake12_choices.STUDY,
        peek_study.STUDY,
        peek_study.PONG_STUDY,
        atari_study.STUDY,
        atari_study.ALE_STUDY,
    )
}
