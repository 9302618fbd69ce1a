"""Computes the layers of DiscoRL's rule on its named weights; all act as x W + b.

Names and shapes are those of the published weights (`disco_103.npz`), so a file of them is η itself. Source: as in
`metagrad.disco_values`.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Weights = Mapping[str, Tensor]

TRAJECTORY, META = "lstm/", "lstm/~/meta_lstm/~unroll/"
"""Prefixes of the two networks that have embeddings and a recurrent cell of their own."""

EMBEDDING = 16
"""Units of every small hidden layer."""
ACTION_INPUTS, BASE_INPUTS, ACTION_FEATURES = 9, 23, 2
"""Numbers of columns: features of each action, those of a step without its actions' embeddings, and an embedding."""
INPUTS = BASE_INPUTS + 2 * ACTION_FEATURES


def shapes(prediction: int, hidden: int, meta_hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name, in the order of the published file."""
    action, inputs = ACTION_FEATURES, INPUTS
    small = {
        "mlp/~/linear_0": (prediction, EMBEDDING),
        "mlp/~/linear_1": (EMBEDDING, 1),
        "mlp_1/~/linear_0": (prediction, EMBEDDING),
        "mlp_1/~/linear_1": (EMBEDDING, 1),
    }
    actions = {
        "sequential/conv1_d": (1, 2 * ACTION_INPUTS, EMBEDDING),
        "sequential/conv1_d_1": (1, 2 * EMBEDDING, action),
    }
    weights = {
        f"{TRAJECTORY}linear": (meta_hidden, hidden),
        f"{TRAJECTORY}linear_1": (hidden, 1),
        f"{TRAJECTORY}linear_2": (hidden, prediction),
        f"{TRAJECTORY}linear_3": (hidden, prediction),
        f"{TRAJECTORY}linear_4": (EMBEDDING, 1),
        f"{TRAJECTORY}lstm/linear": (inputs + hidden, 4 * hidden),
        **{f"{TRAJECTORY}{name}": shape for name, shape in (small | actions).items()},
        f"{TRAJECTORY}sequential_1/conv1_d": (1, 2 * (hidden + action), EMBEDDING),
        f"{META}lstm/linear": (EMBEDDING + meta_hidden, 4 * meta_hidden),
        **{f"{META}{name}": shape for name, shape in small.items()},
        f"{META}mlp_2/~/linear_0": (inputs + 2, EMBEDDING),
        **{f"{META}{name}": shape for name, shape in actions.items()},
    }
    return {f"{name}/{part}": own for name, shape in weights.items() for part, own in (("b", shape[-1:]), ("w", shape))}


def linear(weights: Weights, name: str, x: Float[Tensor, "*N in_"]) -> Float[Tensor, "*N out"]:
    """Apply one linear layer."""
    return x @ weights[f"{name}/w"] + weights[f"{name}/b"]


def embedded(weights: Weights, name: str, probabilities: Float[Tensor, "*N Y"]) -> Float[Tensor, "*N 1"]:
    """Return one number of each prediction: two layers with a ReLU between them."""
    return linear(weights, f"{name}/~/linear_1", torch.relu(linear(weights, f"{name}/~/linear_0", probabilities)))


def action_block(
    weights: Weights, name: str, of_action: Float[Tensor, "T B A in_"], of_step: Float[Tensor, "T B S"] | None = None
) -> Float[Tensor, "T B A out"]:
    """Return relu([x, mean of x over the actions] W + b), where x = [of_step repeated, of_action].

    What all actions share is multiplied once.
    """
    weight = weights[f"{name}/w"][0]
    own, mean = weight.chunk(2)
    shared = 0 if of_step is None else of_step.shape[-1]
    common = of_action.mean(2) @ mean[shared:] + weights[f"{name}/b"]
    if of_step is not None:
        common = common + of_step @ (own[:shared] + mean[:shared])
    return torch.relu(of_action @ own[shared:] + common.unsqueeze(2))


def action_embedding(weights: Weights, prefix: str, x: Float[Tensor, "T B A 9"]) -> Float[Tensor, "T B A 2"]:
    """Return E, the embedding of each action among all of them."""
    inner = action_block(weights, f"{prefix}sequential/conv1_d", x)
    return action_block(weights, f"{prefix}sequential/conv1_d_1", inner)


def lstm_step(gates: Float[Tensor, "*N four_H"], cell: Float[Tensor, "*N H"]) -> tuple[Tensor, Tensor]:
    """Return hidden and cell after one step of an LSTM whose gates are [i, g, f, o], with 1 added to f."""
    write, candidate, forget, read = gates.chunk(4, -1)
    cell = torch.sigmoid(forget + 1.0) * cell + torch.sigmoid(write) * torch.tanh(candidate)
    return torch.sigmoid(read) * torch.tanh(cell), cell


def backward_lstm(
    weights: Weights, name: str, x: Float[Tensor, "T B in_"], resets: Bool[Tensor, "T B"]
) -> Float[Tensor, "T B H"]:
    """Run an LSTM backwards in time from zero, and set it to zero where `resets` before that step is seen."""
    of_input, of_hidden = weights[f"{name}/w"].split((x.shape[-1], len(weights[f"{name}/w"]) - x.shape[-1]))
    of_inputs = x @ of_input + weights[f"{name}/b"]
    keeps = (~resets).to(x.dtype).unsqueeze(-1)
    hidden = cell = torch.zeros_like(of_inputs[0, ..., : len(of_hidden)])
    hiddens: list[Tensor] = []
    for t in range(len(x) - 1, -1, -1):
        hidden, cell = hidden * keeps[t], cell * keeps[t]
        hidden, cell = lstm_step(of_inputs[t] + hidden @ of_hidden, cell)
        hiddens.append(hidden)
    return torch.stack(hiddens[::-1])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join features along the last axis; one without it has one column."""
    widest = max(part.dim() for part in parts)
    return torch.cat([part.unsqueeze(-1) if part.dim() < widest else part for part in parts], -1)
