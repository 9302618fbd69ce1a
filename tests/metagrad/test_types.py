import torch
from torch.utils import _pytree as pytree

from metagrad.types import Episodes, Rollout, Trajectory, WeightSnapshot


def test_trajectory_is_a_torch_pytree(make_trajectory):
    trajectory = make_trajectory(torch.Generator().manual_seed(0), steps=4, batch=3)
    trajectory = trajectory._replace(first_state=torch.ones(3, 2), first_return=torch.ones(3))
    doubled = pytree.tree_map(lambda leaf: leaf * 2, trajectory)
    assert isinstance(doubled, Trajectory)
    assert torch.equal(doubled.reward, 2 * trajectory.reward)
    per_environment = torch.func.vmap(
        lambda trajectory: (trajectory.reward * trajectory.valid).sum(),
        in_dims=(Trajectory(1, 1, 1, 1, 1, 1, 1, None, 0, 0),),
    )(trajectory)
    torch.testing.assert_close(per_environment, (trajectory.reward * trajectory.valid).sum(0))


def test_rollout_nests_without_losing_a_leaf(make_trajectory):
    trajectory = make_trajectory(torch.Generator().manual_seed(0))
    rollout = Rollout(trajectory, Episodes(torch.ones(2), torch.tensor([3, 4])), actor=1, is_lookahead=False)
    leaves, spec = pytree.tree_flatten(rollout)
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 9
    again = pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, Rollout)
    assert again.trajectory.observation is trajectory.observation


def test_weight_snapshot_keeps_its_order():
    version, theta, eta = WeightSnapshot(7, torch.zeros(3), torch.ones(2))
    assert (version, theta.shape, eta.shape) == (7, (3,), (2,))
