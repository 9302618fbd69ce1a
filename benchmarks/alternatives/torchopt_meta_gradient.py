"""Computes the meta-gradient by TorchOpt.

It uses TorchOpt's differentiable Adam and one reverse pass through the graph of all updates.

`python -m benchmarks.alternatives.torchopt_meta_gradient SETTING ENVIRONMENTS`; cases "time N" and "peak N" for
look-aheads of N updates. One thread.

Network, loss and batch are metagrad's own, of `benchmarks.meta_gradient_cases`: what is compared is the optimizer and
the way the derivative is taken, and of η alone, not of θ₀. Of TorchOpt's ways the functional `torchopt.adam` with
inplace=False, on θ as one vector (`MetaAdam` does the same tensor by tensor, on a module that it changes), and with
`use_accelerated_op=True`, an Adam with its derivatives in C++: on one core 3 % faster than without at n = 3 on Nature,
2 % less memory, no difference on Snake. TorchOpt's `clip_grad_norm` takes the norm for a constant, which is another
derivative: the clip is metagrad's formula.
"""

import sys
from functools import partial
from typing import Any

import torch
import torchopt
from torch import Tensor

from benchmarks.alternatives.serve import serve
from benchmarks.harness import peak_growth_bytes
from benchmarks.meta_gradient_cases import ADAM, LEARNING_RATE, LENGTHS, MAX_NORM, SETTINGS, MetaUpdate


class TorchOptMetaUpdate:
    """Runs one fixed meta-update on the numbers of `MetaUpdate`."""

    def __init__(self, ours: MetaUpdate):
        self.ours = ours
        self.adam = torchopt.adam(
            lr=LEARNING_RATE,
            betas=(ADAM.beta1, ADAM.beta2),
            eps=ADAM.eps,
            eps_root=ADAM.eps_root,
            use_accelerated_op=True,
        )

    def start(self) -> Any:
        """Return Adam's state in mid-run; the other members of TorchOpt's chain have none."""
        first, second = self.ours.state.moments
        count = torch.tensor(self.ours.state.updates, device=first.device)
        fresh = self.adam.init((self.ours.theta,))
        return tuple(
            state._replace(mu=(first,), nu=(second,), count=(count,)) if hasattr(state, "mu") else state
            for state in fresh
        )

    def gradient(self, n: int) -> Tensor:
        """Return ∂J/∂η."""
        ours = self.ours
        theta, state = ours.theta.detach().requires_grad_(), self.start()
        eta = ours.eta.detach().requires_grad_()
        for _ in range(n):
            loss, _ = ours.problem.loss(theta, eta, ours.batch)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            coefficient = (MAX_NORM / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
            updates, state = self.adam.update((coefficient * gradient,), state, params=(theta,), inplace=False)
            (theta,) = torchopt.apply_updates((theta,), updates, inplace=False)
        (result,) = torch.autograd.grad(ours.outer_loss(theta, ours.batch)[0], eta)
        return result

    def timed(self, n: int) -> dict[str, Any]:
        """Run it once; return the time and the result."""
        return {"meta_gradient": self.gradient(n).tolist()}

    def peak(self, n: int) -> dict[str, Any]:
        """Peak memory of the first run over what was resident before."""
        return {"peak_growth_bytes": peak_growth_bytes(lambda: self.gradient(n))}


def main(setting: str, environments: str) -> None:
    """Serve the cases of one setting."""
    torch.set_num_threads(1)
    ours = MetaUpdate(SETTINGS[setting]._replace(environments=int(environments)))
    theirs = TorchOptMetaUpdate(ours)
    cases = {}
    for n in LENGTHS:
        cases[f"time {n}"] = partial(theirs.timed, n)
        cases[f"peak {n}"] = partial(theirs.peak, n)
    serve(cases, {"torch": torch.__version__, "torchopt": torchopt.__version__})


if __name__ == "__main__":
    main(*sys.argv[1:])
