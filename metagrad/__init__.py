"""Computes meta-gradients through inner updates, for your own training loop: the names that such a loop needs.

docs/library.md lists them. Each is imported when it is first used, because the command line sets torch's threads before
it loads torch; `import metagrad` alone loads nothing. `load`, which reads the folder of a run, imports the whole system
and is not part of `from metagrad import *`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metagrad.actor_critic import A2cLoss as A2cLoss
    from metagrad.actor_critic import VtraceLoss as VtraceLoss
    from metagrad.bootstrap import Matching as Matching
    from metagrad.bootstrap import bootstrap_target as bootstrap_target
    from metagrad.bootstrap import matching_loss as matching_loss
    from metagrad.errors import ConfigurationError as ConfigurationError
    from metagrad.experiments.loading import load as load
    from metagrad.flat_module import FlatModule as FlatModule
    from metagrad.intrinsic_reward import IntrinsicRewardLoss as IntrinsicRewardLoss
    from metagrad.losses import OuterObjective as OuterObjective
    from metagrad.meta_gradient import meta_gradient as meta_gradient
    from metagrad.meta_gradient import outer_gradient as outer_gradient
    from metagrad.meta_gradient import outer_weights as outer_weights
    from metagrad.meta_parameters import MetaParameter as MetaParameter
    from metagrad.meta_parameters import MetaVector as MetaVector
    from metagrad.meta_parameters import hyperparameters as hyperparameters
    from metagrad.meta_parameters import init_eta as init_eta
    from metagrad.monte_carlo import LookAhead as LookAhead
    from metagrad.monte_carlo import unroll_gradients as unroll_gradients
    from metagrad.networks import ImpalaCnn as ImpalaCnn
    from metagrad.networks import Mlp as Mlp
    from metagrad.networks import NatureCnn as NatureCnn
    from metagrad.networks import NetworkSpec as NetworkSpec
    from metagrad.networks import build_network as build_network
    from metagrad.optimizers import Adam as Adam
    from metagrad.optimizers import ClipByGlobalNorm as ClipByGlobalNorm
    from metagrad.optimizers import OptimizerState as OptimizerState
    from metagrad.optimizers import RmsProp as RmsProp
    from metagrad.optimizers import Sgd as Sgd
    from metagrad.optimizers import learnt_rate as learnt_rate
    from metagrad.returns import lambda_returns as lambda_returns
    from metagrad.returns import vtrace as vtrace
    from metagrad.shares import group_shares as group_shares
    from metagrad.surrogates import ad as ad
    from metagrad.surrogates import dice as dice
    from metagrad.surrogates import loaded_dice as loaded_dice
    from metagrad.surrogates import lvc as lvc
    from metagrad.surrogates import off_policy_dice as off_policy_dice
    from metagrad.tape import recorded as recorded
    from metagrad.types import Trajectory as Trajectory
    from metagrad.unroll import InnerProblem as InnerProblem
    from metagrad.unroll import inner_update as inner_update

_NAMES = {
    "actor_critic": ("A2cLoss", "VtraceLoss"),
    "bootstrap": ("Matching", "bootstrap_target", "matching_loss"),
    "errors": ("ConfigurationError",),
    "flat_module": ("FlatModule",),
    "intrinsic_reward": ("IntrinsicRewardLoss",),
    "losses": ("OuterObjective",),
    "meta_gradient": ("meta_gradient", "outer_gradient", "outer_weights"),
    "meta_parameters": ("MetaParameter", "MetaVector", "hyperparameters", "init_eta"),
    "monte_carlo": ("LookAhead", "unroll_gradients"),
    "networks": ("ImpalaCnn", "Mlp", "NatureCnn", "NetworkSpec", "build_network"),
    "optimizers": ("Adam", "ClipByGlobalNorm", "OptimizerState", "RmsProp", "Sgd", "learnt_rate"),
    "returns": ("lambda_returns", "vtrace"),
    "shares": ("group_shares",),
    "surrogates": ("ad", "dice", "loaded_dice", "lvc", "off_policy_dice"),
    "tape": ("recorded",),
    "types": ("Trajectory",),
    "unroll": ("InnerProblem", "inner_update"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_BEYOND = {"load": "experiments.loading"}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import one of the names above."""
    module = (_MODULES | _BEYOND).get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"metagrad.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_BEYOND})


class _Package(ModuleType):
    """Keeps `metagrad.meta_gradient` the function; the module of that name is imported from by its full name."""

    @property
    def meta_gradient(self) -> Any:
        return __getattr__("meta_gradient")

    @meta_gradient.setter
    def meta_gradient(self, module: ModuleType) -> None:
        """Ignore the module, which Python puts here when it is first imported."""


sys.modules[__name__].__class__ = _Package
