"""Trains A2C on CartPole and learns its discount and entropy coefficient: metagrad as a library in your own loop.

Network, losses, rollouts and loop are plain torch and gymnasium. The library differentiates through LOOK_AHEAD inner
updates: the first one is kept, the others, on environments of their own, exist only to look ahead.
"""

import argparse
from collections import namedtuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

import metagrad as mg

ENVIRONMENTS, STEPS, LOOK_AHEAD, REWARD_SCALE = 16, 16, 2, 0.1
OUTER_GAMMA, LAMBDA = 0.99, 0.95  # the learnt values are tuned for returns under OUTER_GAMMA
LEARNT = {"gamma": mg.MetaParameter(initial=0.9), "entropy_coefficient": mg.MetaParameter(initial=0.01, high=0.1)}
Batch = namedtuple("Batch", "observation action reward is_terminal is_truncated valid")  # valid False: only a reset


# Two logits, value, value under OUTER_GAMMA.
network = mg.FlatModule(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4)))


def evaluate(theta: Tensor, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, values and outer values of the network with these parameters, one flat vector."""
    output = network(theta, observation)
    return output[..., :2].log_softmax(-1), output[..., 2], output[..., 3]


def targets(batch: Batch, value: Tensor, gamma: Tensor | float) -> Tensor:
    """Return λ-returns that have a derivative in γ and none in the values."""
    return mg.lambda_returns(batch.reward, value.detach(), batch.is_terminal, batch.is_truncated, gamma, LAMBDA)


def inner_loss(theta: Tensor, eta: Tensor, batch: Batch) -> tuple[Tensor, None]:
    """Compute the A2C loss with both critics; γ and the entropy coefficient are functions of η."""
    hyper, (log_probs, value, outer_value) = mg.hyperparameters(LEARNT, eta), evaluate(theta, batch.observation)
    target, outer_target = targets(batch, value, hyper["gamma"]), targets(batch, outer_value, OUTER_GAMMA)
    log_prob = log_probs[:-1].gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    score = mg.lvc(log_prob, batch.is_terminal | batch.is_truncated)  # same gradient as log π, with a better Hessian
    entropy = -(log_probs.exp() * log_probs).sum(-1)[:-1]
    loss = -(target - value[:-1].detach()) * score - hyper["entropy_coefficient"] * entropy
    loss = loss + (target - value[:-1]).square() + (outer_target - outer_value[:-1]).square()
    return loss[batch.valid].mean(), None


def outer_loss(theta: Tensor, batch: Batch) -> tuple[Tensor, None]:
    """Compute the policy-gradient loss under OUTER_GAMMA, with the critic that belongs to it."""
    log_probs, _, outer_value = evaluate(theta, batch.observation)
    advantage = targets(batch, outer_value, OUTER_GAMMA) - outer_value[:-1].detach()
    log_prob = log_probs[:-1].gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    return -(advantage * log_prob)[batch.valid].mean(), None


PROBLEM = mg.InnerProblem(inner_loss, mg.Adam(learning_rate=2e-3, max_gradient_norm=1.0))
META_OPTIMIZER = mg.Adam(learning_rate=1e-2)


class Stream:
    """Steps environments that continue from one rollout to the next."""

    def __init__(self, seed: int) -> None:
        envs = gymnasium.make_vec("CartPole-v1", ENVIRONMENTS, vectorization_mode="sync")
        self.envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs, buffer_length=20)
        self.random = torch.Generator().manual_seed(seed)
        self.observation, self.has_ended = self.envs.reset(seed=seed)[0], np.zeros(ENVIRONMENTS, dtype=bool)

    @torch.no_grad()
    def rollout(self, theta: Tensor) -> Batch:
        """Return STEPS steps; an episode's end is followed by its true successor, then by the reset (NEXT_STEP)."""
        observations, rows = [self.observation], []
        for _ in range(STEPS):
            log_probs, _, _ = evaluate(theta, torch.as_tensor(self.observation).to(theta))
            action = torch.multinomial(log_probs.exp(), 1, generator=self.random).squeeze(-1).numpy()
            self.observation, reward, terminal, truncated, _ = self.envs.step(action)
            rows.append((action, REWARD_SCALE * reward, terminal, truncated, ~self.has_ended))
            observations.append(self.observation)
            self.has_ended = terminal | truncated
        columns = [np.stack(observations), *(np.stack(column) for column in zip(*rows, strict=True))]
        return Batch(*(x.to(theta) if x.is_floating_point() else x for x in map(torch.as_tensor, columns)))


def train(updates: int, seed: int) -> tuple[float, Tensor]:
    """Return the mean return of the last 20 real episodes, and η, after `updates` ≥ 1 updates."""
    torch.manual_seed(seed)
    network.module.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    theta, eta = network.theta(), mg.init_eta(LEARNT)
    state, meta_state = PROBLEM.optimizer.init(theta), META_OPTIMIZER.init(eta)
    real, ahead = Stream(2 * seed * ENVIRONMENTS), Stream((2 * seed + 1) * ENVIRONMENTS)
    for update in range(1, updates + 1):
        first = last = mg.inner_update(PROBLEM, theta, state, eta, real.rollout(theta), keep_graph=True)
        tape = [first.step]
        for _ in range(1, LOOK_AHEAD):
            last = mg.inner_update(PROBLEM, last.theta, last.state, eta, ahead.rollout(last.theta), keep_graph=True)
            tape.append(last.step)
        outer = mg.outer_gradient(outer_loss, last.theta, ahead.rollout(last.theta)).gradient
        gradient = mg.meta_gradient(PROBLEM, tape, [*[None] * (LOOK_AHEAD - 1), outer], "retain").eta
        theta, state = first.theta, first.state
        eta, meta_state = META_OPTIMIZER.update(gradient, meta_state, eta, eta)
        mean_return = torch.tensor(real.envs.return_queue).mean().item()
        if update % 100 == 0:
            learnt = (f"{name} {value.item():.4f}" for name, value in mg.hyperparameters(LEARNT, eta).items())
            print(f"update {update}  return {mean_return:.1f}", *learnt, sep="  ")
    return mean_return, eta


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
