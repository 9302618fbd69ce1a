"""Estimates meta-gradients in tabular MDPs: four estimators, in three places where each is either sampled or exact.

A permutation has a letter for each place, S (sampled) or E (exact): the value of an inner update (I), its derivative
(II), and the outer gradient (III), "SEE" for instance. What is sampled has independent data in each place and at each
inner step. N copies, each with an MDP and data of its own, are one batched unroll.

    MAML    ∂J_R(θ_K)/∂θ₀       inner updates on R, η is empty
    LIRPG   ∂J_R(θ_K)/∂φ        inner updates on R + φ, η = φ

Streams: an MDP is a function of its own seed alone; the numbers that choose actions and successors and those that
disturb the values come from a generator each for (seed, place, inner step), and from nothing else of the setting. So
all settings see the same MDPs, and two estimators the same trajectories for as long as their policies agree.

Shapes: S states, A actions, P = S·A, T steps, B trajectories, N copies, E = 1 where the B share their noise, else B.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.1, G.1, and its released code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad import autodiff
from metagrad.actors.envs.tabular_mdp import START_STATE, TabularMdpConfig, cumulative_transition, random_mdp
from metagrad.errors import require
from metagrad.meta_gradient import OuterLoss, outer_weights
from metagrad.monte_carlo import LookAhead, Sampler, unroll_gradients
from metagrad.optimizers import Sgd, constant
from metagrad.returns import lambda_returns
from metagrad.surrogates import SURROGATES, dice, discounted_objective
from metagrad.tabular import TabularMdp, exact_loss, exact_outer_loss, log_policy, state_values, with_intrinsic_reward
from metagrad.unroll import InnerProblem, Loss

EstimatorName = Literal["ad", "lvc", "dice", "loaded-dice"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
PERMUTATIONS = ("SSS", "SSE", "SES", "SEE", "ESS", "ESE", "EES")  # EEE is the exact answer

GAMMA = 0.8  # Table 2
VALUE, DERIVATIVE, OUTER = range(3)  # places: estimators I, II and III of G.1.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimation:
    """Says how a meta-gradient is estimated; the defaults are Table 2's."""

    estimator: EstimatorName
    permutation: str
    """S (sampled) or E (exact) for inner value, inner derivative and outer gradient."""
    learning_rate: float = 10.0
    steps: int = 1
    """Inner updates, K."""
    trajectories: int = 32
    """B of each sampled estimate."""
    horizon: int = 20
    """Steps of a trajectory, T; exact objectives never end, sampled ones bootstrap (but for DiCE)."""
    noise: float = 1.0
    """Of the values: V^ = V_π + noise ε ‖V_π‖₂/S, ε ~ N(0, I) of each estimate."""
    is_noise_shared: bool = True
    """One ε for the B trajectories of an estimate, as if they had one learnt critic; else one for each."""
    is_noise_scale_constant: bool = False
    """True: ‖V_π‖₂ in the noise carries no derivative in the rewards (the release)."""
    inner_lambda: float = 1.0
    """λ of the inner updates' advantages; 1: bootstrapped T-step returns, which the outer ones always are."""

    def __post_init__(self) -> None:
        is_known = self.estimator in ESTIMATORS
        require(is_known, "estimator", self.estimator, f"must be one of {ESTIMATORS}", "choose one")
        is_word = len(self.permutation) == 3 and set(self.permutation) <= set("SE")
        require(is_word, "permutation", self.permutation, "must be three letters, S or E", 'write "SEE"')
        for name in ("steps", "trajectories", "horizon"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1", "raise it")
        require(self.noise >= 0.0, "noise", self.noise, "must not be negative", "give its size")
        require(0.0 <= self.inner_lambda <= 1.0, "inner_lambda", self.inner_lambda, "must lie in [0, 1]", "change it")


class Trajectories(NamedTuple):
    """Holds the data of one sampled estimate."""

    state: Int64[Tensor, "*N T+1 B"]
    action: Int64[Tensor, "*N T B"]
    noise: Float[Tensor, "*N S E"]  # noise · ε of V^, in units of ‖V_π‖₂/S


class Data(NamedTuple):
    """Holds what is evaluated at one θ: the MDP, and trajectories wherever something is sampled there."""

    mdp: TabularMdp
    value: Trajectories | None
    derivative: Trajectories | None
    outer: Trajectories | None


def mdp_stack(seeds: Sequence[int], dtype: torch.dtype = torch.float64) -> TabularMdp:
    """Make the paper's random MDPs of these seeds with a leading axis N; 20 copies of one MDP are 20 times its seed.

    20 states, 5 actions, Dirichlet(0.001) transitions, rewards U[0, 1), start in state 0, discount 0.8, no end.
    """
    config = TabularMdpConfig()
    unique = {seed: random_mdp(config.states, config.actions, config.concentration, seed, dtype) for seed in set(seeds)}
    initial = torch.zeros(len(seeds), config.states, dtype=dtype)
    initial[:, START_STATE] = 1.0
    return TabularMdp(
        transition=torch.stack([unique[seed].transition for seed in seeds]),
        reward=torch.stack([unique[seed].reward for seed in seeds]),
        initial=initial,
        gamma=GAMMA,
        horizon=None,
    )


def copy_of(mdps: TabularMdp, index: int) -> TabularMdp:
    """Return one MDP of a stack."""
    return mdps._replace(transition=mdps.transition[index], reward=mdps.reward[index], initial=mdps.initial[index])


def noisy_values(
    mdp: TabularMdp, theta: Float[Tensor, "P"], noise: Float[Tensor, "S E"], is_scale_constant: bool = False
) -> Float[Tensor, "S E"]:
    """Return V^ = V_π + noise ‖V_π‖₂/S, an imperfect critic; constant in θ, differentiable in the rewards.

    With `is_scale_constant` V^ = V_π + noise ⊥‖V_π‖₂/S: the rewards reach it through V_π alone.
    """
    value = state_values(mdp, autodiff.stop_gradient(theta)).unsqueeze(-1)
    scale = torch.linalg.vector_norm(value)
    if is_scale_constant:
        scale = autodiff.stop_gradient(scale)
    return value + noise * scale / len(value)


def sampled_loss(
    theta: Float[Tensor, "P"],
    phi: Float[Tensor, "M"],
    mdp: TabularMdp,
    data: Trajectories,
    estimator: EstimatorName,
    lambda_: float,
    is_noise_scale_constant: bool = False,
) -> Float[Tensor, ""]:
    """Return -J as an estimator sees it, on R + φ (R where φ is empty); of -J it has the gradient, not the value.

    Equation: AD, LVC, Loaded-DiCE: -mean_B Σ_t γ^t A_t s_t with A_t = G_t - V^(s_t), G_t the λ-return bootstrapped with
    V^; DiCE: -mean_B Σ_t γ^t Π_{k≤t} ρ_k r_t, neither baseline nor bootstrap.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.1 and its released code.
    """
    mdp = with_intrinsic_reward(mdp, phi)
    state = data.state[:-1]
    # One gather from a flat table: under vmap several times as fast, forwards and backwards, as indexing with a pair.
    actions = mdp.reward.shape[-1]
    pair = (state * actions + data.action).flatten()
    log_prob = log_policy(theta, actions).flatten().gather(0, pair).view_as(state)
    reward = mdp.reward.flatten().gather(0, pair).view_as(state)
    if estimator == "dice":
        return -dice(log_prob, reward, mdp.gamma)
    value = (
        noisy_values(mdp, theta, data.noise, is_noise_scale_constant).expand(-1, state.shape[-1]).gather(0, data.state)
    )
    never = torch.zeros_like(reward, dtype=torch.bool)
    advantage = lambda_returns(reward, value, never, never, mdp.gamma, lambda_) - value[:-1]
    return -discounted_objective(SURROGATES[estimator], log_prob, advantage, mdp.gamma)


def inner_problem(estimation: Estimation) -> InnerProblem:
    """Return θ' = θ + α ∇J, its value from estimator I and its derivative from estimator II; batches are `Data`."""

    def loss_at(place: int) -> Loss:
        def loss(theta: Tensor, phi: Tensor, data: Data) -> tuple[Tensor, None]:
            trajectories = data.value if place == VALUE else data.derivative
            if trajectories is None:
                return exact_loss(theta, phi, data.mdp)
            how = (estimation.estimator, estimation.inner_lambda, estimation.is_noise_scale_constant)
            return sampled_loss(theta, phi, data.mdp, trajectories, *how), None

        return loss

    is_exact = estimation.permutation[:2] == "EE"
    optimizer = Sgd(learning_rate=constant(estimation.learning_rate))
    return InnerProblem(loss_at(VALUE), optimizer, None if is_exact else loss_at(DERIVATIVE))


def outer_loss(estimation: Estimation) -> OuterLoss:
    """Return -J by estimator III, on R whatever reward the inner updates saw; batches are `Data`."""

    def loss(theta: Tensor, data: Data) -> tuple[Tensor, None]:
        if data.outer is None:
            return exact_outer_loss(theta, data.mdp)
        return sampled_loss(theta, theta[:0], data.mdp, data.outer, estimation.estimator, 1.0), None

    return loss


def sample_trajectories(
    cumulative: Float[Tensor, "N S A S"], theta: Float[Tensor, "N P"], uniform: Float[Tensor, "N T 2 B"]
) -> tuple[Int64[Tensor, "N T+1 B"], Int64[Tensor, "N T B"]]:
    """Sample states and actions of B trajectories of each copy by inverse CDF of numbers for actions and successors."""
    (copies, horizon, _, trajectories), (states, actions) = uniform.shape, cumulative.shape[1:3]
    # The environment's `advance` on one row for each (copy, state) and each (copy, state, action): picking whole rows
    # of a matrix is several times as fast as indexing with copy, state and action. Without the last column no number
    # lies above a row of the policy, whatever it was rounded to.
    policy = torch.softmax(theta.view(-1, actions), dim=-1).cumsum(-1)[:, :-1].contiguous()
    successors = cumulative.reshape(-1, states)
    first = (torch.arange(copies, device=theta.device) * states).repeat_interleave(trajectories)
    numbers = uniform.movedim(0, 2).reshape(horizon, 2, copies * trajectories, 1)
    state = torch.full_like(first, START_STATE)
    all_states, all_actions = [state], []
    for t in range(horizon):
        row = first + state
        action = (policy.index_select(0, row) <= numbers[t, 0]).sum(-1)
        state = (successors.index_select(0, row * actions + action) <= numbers[t, 1]).sum(-1)
        all_actions.append(action)
        all_states.append(state)

    def by_copy(each: list[Tensor]) -> Tensor:
        return torch.stack(each).view(len(each), copies, trajectories).movedim(1, 0)

    return by_copy(all_states), by_copy(all_actions)


def data_sampler(estimation: Estimation, mdps: TabularMdp, seed: int) -> Sampler:
    """Return a sampler of fresh data at every θⱼ: for the inner estimates at j < K, for the outer one at j = K."""
    cumulative = cumulative_transition(mdps.transition)
    copies, states = mdps.initial.shape
    size, dtype = estimation.trajectories, mdps.reward.dtype

    def trajectories(theta: Tensor, place: int, j: int) -> Trajectories | None:
        if estimation.permutation[place] == "E" or (place == OUTER) != (j == estimation.steps):
            return None
        numbers = (copies, estimation.horizon, 2, size)
        # float64 whatever the tables are: rounded to float32, a number below 1 can become 1.
        uniform = torch.rand(numbers, generator=_stream(seed, place, j, "samples"), dtype=torch.float64)
        each = (copies, states, 1 if estimation.is_noise_shared else size)
        epsilon = torch.randn(each, generator=_stream(seed, place, j, "noise"), dtype=torch.float64)
        return Trajectories(*sample_trajectories(cumulative, theta, uniform), estimation.noise * epsilon.to(dtype))

    def sample(theta: Tensor, j: int) -> Data:
        return Data(mdps, *(trajectories(theta, place, j) for place in (VALUE, DERIVATIVE, OUTER)))

    return sample


def maml_gradients(
    estimation: Estimation, mdps: TabularMdp, seed: int, thetas: list[Tensor] | None = None
) -> Float[Tensor, "N P"]:
    """Return an independent estimate of ∂J(θ_K)/∂θ₀ for each MDP of the stack, at the uniform policy θ₀ = 0.

    The parameters θ₀ … θ_K [N, P] on the way are appended to `thetas`.
    """
    sampler = data_sampler(estimation, mdps, seed)

    def recorded(theta: Tensor, j: int) -> Data:
        if thetas is not None:
            thetas.append(theta.clone())
        return sampler(theta, j)

    return meta_gradients(inner_problem(estimation), outer_loss(estimation), recorded, mdps, estimation.steps)


def lirpg_gradients(estimation: Estimation, mdps: TabularMdp, seed: int) -> Float[Tensor, "N M"]:
    """Return an independent estimate of ∂J_R(θ_K)/∂φ for each MDP of the stack, at θ₀ = 0 and φ = 0."""
    phi, sampler = mdps.reward.new_zeros(mdps.reward[0].numel()), data_sampler(estimation, mdps, seed)
    return meta_gradients(inner_problem(estimation), outer_loss(estimation), sampler, mdps, estimation.steps, phi)


def meta_gradients(
    problem: InnerProblem,
    outer: OuterLoss,
    sampler: Sampler,
    mdps: TabularMdp,
    steps: int,
    phi: Float[Tensor, "M"] | None = None,
) -> Float[Tensor, "N D"]:
    """Return ∂J(θ_K)/∂φ of each MDP's unroll from θ₀ = 0; where there is no φ, ∂J(θ_K)/∂θ₀."""
    theta = mdps.reward.new_zeros(mdps.reward[0].numel())
    gradients = unroll_gradients(
        problem,
        outer,
        sampler,
        (theta, problem.optimizer.init(theta), theta[:0] if phi is None else phi),
        LookAhead(outer_weights("n-step", steps), wants_theta=phi is None),
        len(mdps.reward),
    )
    of_loss = gradients.theta if phi is None else gradients.eta
    assert of_loss is not None
    return of_loss.neg()


def _stream(seed: int, place: int, step: int, purpose: Literal["samples", "noise"]) -> torch.Generator:
    """Return a generator that depends on these four and on nothing else."""
    entropy = np.random.SeedSequence((seed, place, step, int(purpose == "noise"))).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
