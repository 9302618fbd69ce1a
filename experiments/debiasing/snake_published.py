"""Loads curves of Snake 6x6 that the authors of the debiasing paper released.

They are means and sample standard deviations of 10 seeds.

Source: released data of "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function" (Figures
3 and 5b). The paper's A2C curve is the greedy policy, the others sample; γ is the mean of the epoch before.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """Return a number of the authors' data."""

    mean: float
    std: float | None  # None: not given


CHECKPOINTS = (0, 584, 1_460, 2_920, 29_200)  # updates


def _row(*values: tuple[float, float | None]) -> dict[int, Published]:
    return {update: Published(*value) for update, value in zip(CHECKPOINTS, values, strict=True)}


RETURNS: dict[str, dict[int, Published]] = {
    "a2c": _row((0.08, None), (3.92, 0.11), (5.26, 0.35), (6.64, 0.43), (17.4, 0.3)),
    "mg": _row((0.15, None), (3.53, 0.18), (5.44, 0.28), (6.77, 0.43), (24.9, 6.3)),
    "mg-outer": _row((0.15, None), (3.62, 0.19), (5.62, 0.23), (7.91, 1.3), (34.2, 0.3)),
    "bmg": _row((0.15, None), (3.57, 0.21), (5.28, 0.42), (6.52, 0.70), (24.0, 11.5)),
    "bmg-outer": _row((0.15, None), (3.64, 0.14), (5.61, 0.29), (7.49, 1.2), (31.6, 6.0)),
}

DISCOUNTS: dict[str, dict[int, Published]] = {
    "mg": _row((0.8, None), (0.856, 0.012), (0.846, 0.019), (0.837, 0.017), (0.965, 0.026)),
    "mg-outer": _row((0.8, None), (0.912, 0.007), (0.923, 0.010), (0.934, 0.012), (0.996, 0.001)),
    "bmg": _row((0.8, None), (0.832, 0.04), (0.802, 0.07), (0.756, 0.10), (0.809, 0.25)),
    "bmg-outer": _row((0.8, None), (0.890, 0.03), (0.893, 0.03), (0.876, 0.05), (0.987, 0.02)),
}

GREEDY = ("a2c",)  # whose published returns are of the greedy policy
BIASED_ADVANTAGE = 0.3  # mean outer advantage without outer critic, from update 584 on: this or more
CENTRED_ADVANTAGE = 0.006  # with it: within ± this
ADVANTAGE_FROM = 584
"""Figure 5b."""
