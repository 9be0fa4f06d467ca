"""The replay buffer against a list that stores every transition and looks ahead step by step."""

import numpy as np
import pytest
import torch

from agents.replay import FlatReplay

GAMMA = 0.9


def fill(buffer, num_rows, num_envs, seed=0):
    """Random episodes whose observation is (env, episode, time); returns the transitions as plain dicts by column."""
    rng = np.random.default_rng(seed)
    episode, clock = np.zeros(num_envs, int), np.zeros(num_envs, int)
    columns = [[] for _ in range(num_envs)]
    for _ in range(num_rows):
        obs = np.stack([np.arange(num_envs), episode, clock], 1).astype(np.float32)
        next_obs = obs + np.array([0, 0, 1], np.float32)
        action = rng.uniform(-1, 1, (num_envs, 2)).astype(np.float32)
        reward = rng.normal(size=num_envs).astype(np.float32)
        terminated, truncated = rng.random(num_envs) < 0.1, rng.random(num_envs) < 0.1
        truncated &= ~terminated
        buffer.add(obs, action, reward, terminated, truncated, next_obs)
        for e in range(num_envs):
            columns[e].append((obs[e], action[e], reward[e], terminated[e], truncated[e], next_obs[e]))
        ended = terminated | truncated
        episode += ended
        clock = np.where(ended, 0, clock + 1)
    return columns


def naive(columns, env, position, n_step):
    """n-step transition by its definition."""
    obs, action = columns[env][position][:2]
    total, discount = 0.0, 1.0
    for _, _, reward, terminated, truncated, last_obs in columns[env][position : position + n_step]:
        total += discount * reward
        discount *= GAMMA
        next_obs = last_obs
        if terminated or truncated:
            break
    return obs, action, total, 0.0 if terminated else discount, next_obs


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_rows", [7, 20, 53])  # partly filled, exactly full, wrapped
def test_every_transition_equals_the_naive_buffer(n_step, num_rows):
    num_envs, capacity_rows = 3, 20
    buffer = FlatReplay(capacity_rows * num_envs + 1, num_envs, (3,), (2,), False, GAMMA, n_step)
    columns = fill(buffer, num_rows, num_envs)
    kept = min(num_rows, capacity_rows)
    columns = [column[-kept:] for column in columns]
    assert len(buffer.run(0)) == kept * num_envs
    batch = buffer.run(0).gather(torch.arange(len(buffer.run(0))))
    for index in range(len(buffer.run(0))):
        position, env = divmod(index, num_envs)
        expected = naive(columns, env, position, n_step)
        for got, want in zip(batch, expected, strict=True):
            np.testing.assert_allclose(got[index].numpy(), want, rtol=1e-5, atol=1e-6)
    assert buffer.run(0).check_valid() == (True, "")


def test_truncation_bootstraps_from_the_true_last_observation_and_termination_does_not():
    buffer = FlatReplay(10, 1, (1,), (), True, GAMMA)
    row = {"action": np.array([1]), "reward": np.array([1.0], np.float32)}
    for obs, next_obs, terminated, truncated in (
        (4, 5, False, True),
        (0, 1, True, False),
        (0, 1, False, False),
    ):
        buffer.add(
            np.array([[obs]], np.float32),
            row["action"],
            row["reward"],
            np.array([terminated]),
            np.array([truncated]),
            np.array([[next_obs]], np.float32),
        )
    batch = buffer.run(0).gather(torch.tensor([0, 1, 2]))
    assert batch.next_obs[0].item() == 5.0
    torch.testing.assert_close(batch.discount, torch.tensor([GAMMA, 0.0, GAMMA]))
    assert batch.action.dtype == torch.int64


def test_sampling_is_uniform_and_follows_its_generator():
    buffer = FlatReplay(10, 1, (3,), (2,), False, GAMMA)
    fill(buffer, 10, 1)

    def draw(seed):
        return buffer.run(0).sample(20_000, torch.Generator().manual_seed(seed)).reward

    counts = torch.bincount(torch.unique(draw(0), return_inverse=True)[1], minlength=10)
    # Each count is binomial with standard deviation 42; five of them make a failure by chance negligible.
    assert (counts - 2_000).abs().max() < 5 * 42.4
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_state_round_trip_and_later_writes_agree():
    buffer = FlatReplay(12, 2, (3,), (2,), False, GAMMA, n_step=2)
    fill(buffer, 9, 2)
    copy = FlatReplay(12, 2, (3,), (2,), False, GAMMA, n_step=2)
    copy.run(0).load_state_dict(buffer.run(0).state_dict())
    for b in (buffer, copy):
        fill(b, 2, 2, seed=1)
    everything = torch.arange(len(buffer.run(0)))
    for one, other in zip(buffer.run(0).gather(everything), copy.run(0).gather(everything), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "num_rows", [10, 20, 27]
)  # before the smaller ring is full, then, and after it has wrapped
def test_a_larger_ring_goes_on_from_the_state_of_a_smaller_one(num_rows):
    """As in a branch that is longer than the run it left: all transitions, in their order, and room for more."""
    small, large = (FlatReplay(capacity, 2, (3,), (2,), False, GAMMA, 3) for capacity in (40, 100))
    columns = fill(small, num_rows, 2)
    large.run(0).load_state_dict(small.run(0).state_dict())
    later = fill(large, 5, 2, seed=1)
    held = min(num_rows, 20)
    assert len(large.run(0)) == 2 * (held + 5)
    batch = large.gather(torch.arange(len(large.run(0)))[None]).run(0)
    expected = [c[-held:] + more for c, more in zip(columns, later, strict=True)]
    for index, obs in enumerate(batch.obs):
        assert torch.equal(obs, torch.from_numpy(expected[index % 2][index // 2][0]))


def test_check_valid_finds_a_broken_chain():
    buffer = FlatReplay(8, 1, (3,), (2,), False, GAMMA)
    fill(buffer, 6, 1, seed=3)
    buffer._arrays["obs"][4] += 1.0
    valid, reason = buffer.run(0).check_valid()
    assert not valid and "next_obs" in reason


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="less than one row of 4"):
        FlatReplay(3, 4, (1,), (), True, GAMMA)
    with pytest.raises(ValueError, match="n_step"):
        FlatReplay(3, 1, (1,), (), True, GAMMA, n_step=0)
    buffer = FlatReplay(8, 1, (3,), (2,), False, GAMMA)
    with pytest.raises(ValueError, match="empty"):
        buffer.run(0).sample(1, torch.Generator())
    fill(buffer, 6, 1)
    with pytest.raises(ValueError, match="does not fit"):
        FlatReplay(4, 1, (3,), (2,), False, GAMMA).run(0).load_state_dict(buffer.run(0).state_dict())


def test_bytes_needed_are_those_reserved():
    for sizes in ((20, 3, (5,), (2,), False), (20, 4, (7,), (), True)):
        assert FlatReplay.bytes_needed(*sizes) == FlatReplay(*sizes, GAMMA).nbytes


@pytest.mark.parametrize("saved", [False, True])
def test_what_is_cleared_can_be_sampled_until_the_next_row_comes_and_never_again(saved):
    buffer = FlatReplay(8 * 2, 2, (3,), (2,), False, GAMMA, n_step=3, num_runs=2)
    columns = fill(buffer, 11, 4)
    buffer.run(0).clear()
    assert len(buffer.run(0)) == len(buffer.run(1)) == 16
    if saved:
        other = FlatReplay(8 * 2, 2, (3,), (2,), False, GAMMA, n_step=3, num_runs=2)
        for run in (0, 1):
            other.run(run).load_state_dict(buffer.run(run).state_dict())
        buffer = other
    new = fill(buffer, 3, 4, seed=1)
    assert (len(buffer.run(0)), len(buffer.run(1))) == (6, 16)
    got = buffer.run(0).gather(torch.arange(6))
    for index in range(6):
        for value, want in zip(got, naive(new, index % 2, index // 2, 3), strict=True):
            np.testing.assert_allclose(value[index].numpy(), want, rtol=1e-5, atol=1e-6)
    oldest = buffer.run(1).gather(torch.arange(2)).obs
    np.testing.assert_array_equal(oldest, np.stack([columns[column][6][0] for column in (2, 3)]))
