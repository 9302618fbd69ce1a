"""Chooses the arithmetic of networks: float32 throughout, or bfloat16 in their layers.

Under `bf16-mixed` the layers of a network compute in bfloat16, with sums in float32, in every derivative too. Stays in
float32: θ, moments of optimizers, η and networks that are part of it, the last layer of each head, log-probabilities,
returns, losses, norms and the adjoints of the meta-gradient.
The names are PyTorch Lightning's.
"""

from typing import Literal

import torch

from metagrad.errors import require, require_one_of

Precision = Literal["float32", "tf32", "bf16-mixed"]
"""float32; float32 whose products and convolutions a GPU may round to TF32; bfloat16 in the layers of networks."""
PrecisionChoice = Literal["auto", "float32", "tf32", "bf16-mixed"]
"""A `Precision`, or what suits the hardware."""

# As `torch.cpu.get_capabilities` names them: Intel's tiles, x86's dot products, Arm's.
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return True where a device multiplies bfloat16 in silicon; elsewhere it is converted, which costs time."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has = torch.cpu.get_capabilities()
    return any(has.get(unit, False) for unit in _BFLOAT16_UNITS)


def resolved(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Return the precision that `choice` means on a device: auto is bf16-mixed where the device multiplies bfloat16.

    Raises:
        ConfigurationError: no such precision, or TF32 on a device that has none.
    """
    require_one_of(choice, PrecisionChoice, "precision")
    if choice == "auto":
        return "bf16-mixed" if multiplies_bfloat16(device) else "float32"
    rule = f"TF32 is arithmetic of CUDA devices, and the learner's is {device.type}"
    require(choice != "tf32" or device.type == "cuda", "precision", choice, rule, "use float32 or bf16-mixed")
    return choice


def layers_dtype(precision: Precision) -> torch.dtype | None:
    """Return the type of numbers that layers compute in; None: that of θ."""
    return torch.bfloat16 if precision == "bf16-mixed" else None
