"""Lists the papers' experiments and studies as data: names and what describes them."""

from collections.abc import Callable

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.studies.study import Study
from metagrad.experiments.debiasing import discounting_chain_study, snake_study
from metagrad.experiments.debiasing.discounting_chain import discounting_chain
from metagrad.experiments.debiasing.snake import demo, snake_6x6
from metagrad.experiments.gradient_bias import (
    atari_study,
    compositional_bias,
    hessian_bias,
    ipd_study,
    tabular_lirpg,
    tabular_maml,
)
from metagrad.experiments.gradient_bias.atari import atari, atari_released
from metagrad.experiments.gradient_bias.ipd import ipd
from metagrad.experiments.lifetimes import lpg_study
from metagrad.experiments.lifetimes.lifetimes import (
    lifetimes,
    lifetimes_correction,
    lifetimes_disco,
    lifetimes_families,
)
from metagrad.experiments.mixed_precision import precision_study
from metagrad.experiments.one_step_at_a_time import (
    mrp,
    mrp_bias_variance,
    peek_study,
    snake_12x12_choices,
    snake_12x12_study,
)
from metagrad.experiments.one_step_at_a_time.snake_12x12 import snake_12x12
from metagrad.experiments.self_tuning import tuning_study
from metagrad.experiments.self_tuning.self_tuned import lirpg_atari, lirpg_snake, stacx, stacx_impala
from metagrad.experiments.tasks.any_task import envpool, grid_world, gym
from metagrad.experiments.tasks.catch import catch_8x8
from metagrad.experiments.tasks.pong import pong

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
    "discounting-chain": discounting_chain,
    "ipd": ipd,
    "pong": pong,
    "lifetimes": lifetimes,
    "lifetimes-families": lifetimes_families,
    "lifetimes-correction": lifetimes_correction,
    "lifetimes-disco": lifetimes_disco,
    "catch-8x8": catch_8x8,
    "envpool": envpool,
    "gym": gym,
    "grid-world": grid_world,
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
        discounting_chain_study.STUDY,
        ipd_study.STUDY,
        snake_study.STUDY,
        snake_12x12_study.STUDY,
        snake_12x12_choices.STUDY,
        peek_study.STUDY,
        peek_study.PONG_STUDY,
        atari_study.STUDY,
        atari_study.ALE_STUDY,
        precision_study.STUDY,
        tuning_study.STUDY,
        lpg_study.STUDY,
    )
}
