"""The frame replay against a list that stores every stacked observation of a counting environment."""

import copy

import numpy as np
import pytest
import torch

from agents.frames import CHUNK_BYTES, SLACK, FrameReplay
from common import checkpoint
from configs.schema import AtariConfig
from envs import make_vec

GAMMA, STACK, SHAPE = 0.9, 4, (4, 3, 5)


class CountingEnv:
    """N columns whose frames spell (column, episode, step); episodes end at random, either way.

    ``padding`` says what stands before an episode's first frame: zeros, copies of it, or other frames (no-op starts).
    """

    def __init__(self, num_envs, padding="zero", seed=0, mean_length=8):
        self.rng = np.random.default_rng(seed)
        self.num_envs, self.padding, self.mean_length = num_envs, padding, mean_length
        self.episode = np.zeros(num_envs, int)
        self.clock = np.zeros(num_envs, int)
        self.obs = np.stack([self._first(e) for e in range(num_envs)])

    def _frame(self, env, clock):
        frame = np.zeros(SHAPE[1:], np.uint8)
        # 200 + env tells any frame from the zero frame; step -3 of a no-op start is 97.
        frame[0] = [200 + env, *divmod(int(self.episode[env]), 250), *divmod(clock + 100, 250)]
        frame[2] = 255 - frame[0]
        return frame

    def _first(self, env):
        before = {
            "zero": [np.zeros(SHAPE[1:], np.uint8)] * 3,
            "repeat": [self._frame(env, 0)] * 3,
            "noop": [self._frame(env, clock) for clock in (-3, -2, -1)],
        }[self.padding]
        return np.stack([*before, self._frame(env, 0)])

    def step(self):
        """Returns one row as the arguments of ``add``."""
        obs = self.obs
        self.clock += 1
        newest = np.stack([self._frame(e, int(self.clock[e])) for e in range(self.num_envs)])
        next_obs = np.concatenate([obs[:, 1:], newest[:, None]], axis=1)
        ended = self.rng.random(self.num_envs) < 1 / self.mean_length
        terminated = ended & (self.rng.random(self.num_envs) < 0.5)
        self.episode += ended
        self.clock[ended] = 0
        self.obs = next_obs.copy()
        for env in np.flatnonzero(ended):
            self.obs[env] = self._first(env)
        action = self.rng.integers(18, size=self.num_envs)
        reward = self.rng.normal(size=self.num_envs).astype(np.float32)
        return obs, action, reward, terminated, ended & ~terminated, next_obs


def make(capacity_rows, num_envs, n_step=1):
    return FrameReplay(capacity_rows * num_envs + num_envs - 1, num_envs, SHAPE, 18, GAMMA, n_step)


def fill(buffer, env, num_rows):
    rows = [env.step() for _ in range(num_rows)]
    for row in rows:
        buffer.add(*row)
    return rows


def naive(rows, env, position, n_step):
    """n-step transition by its definition, from complete observations."""
    obs, action = rows[position][0][env], rows[position][1][env]
    total, discount = 0.0, 1.0
    for row in rows[position : position + n_step]:
        reward, terminated, truncated, next_obs = (value[env] for value in row[2:])
        total += discount * reward
        discount *= GAMMA
        if terminated or truncated:
            break
    return obs, action, total, 0.0 if terminated else discount, next_obs


def assert_equals_naive(buffer, rows, n_step):
    kept = rows[len(rows) - len(buffer.run(0)) // buffer.num_envs :]
    batch = buffer.run(0).gather(torch.arange(len(buffer.run(0))))
    places = [(position, env) for position in range(len(kept)) for env in range(buffer.num_envs)]
    expected = zip(*(naive(kept, env, position, n_step) for position, env in places), strict=True)
    for got, want in zip(batch, expected, strict=True):
        np.testing.assert_allclose(got.numpy(), np.stack(want), rtol=1e-5, atol=1e-6)
    assert buffer.run(0).check_valid() == (True, "")


@pytest.mark.parametrize("n_step", [1, 3, 9])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("padding", ["zero", "repeat", "noop"])
def test_every_stack_and_return_equals_the_naive_buffer_at_every_moment(n_step, num_envs, padding):
    buffer, env = make(40, num_envs, n_step), CountingEnv(num_envs, padding)
    rows = []
    for moment in range(150):  # partly filled, exactly full, wrapped more than twice
        rows += fill(buffer, env, 1)
        if moment < 12 or moment % 7 == 0:
            assert_equals_naive(buffer, rows, n_step)
    assert len(buffer.run(0)) <= 40 * num_envs


def test_capacity_is_exact_where_episodes_are_long_and_shrinks_where_they_are_short():
    rows = 3 * SLACK
    long, short = make(rows, 2), make(rows, 2)
    fill(long, CountingEnv(2, mean_length=1e9), 5 * rows)
    fill(short, CountingEnv(2, mean_length=2), 5 * rows)
    assert len(long.run(0)) == 2 * rows
    # Half of the transitions end an episode, whose last frame is one more: 3 frames for 2 transitions.
    assert 0.6 * 2 * rows < len(short.run(0)) < 0.8 * 2 * rows
    for buffer in (long, short):
        assert buffer.run(0).check_valid() == (True, "")


def test_atari_sized_million_stays_within_seven_point_two_gigabytes():
    assert FrameReplay.bytes_needed(1_000_000, 4, (4, 84, 84), 18) <= 7.2e9
    small = FrameReplay(400, 4, (4, 84, 84), 18, GAMMA)
    assert small.nbytes == FrameReplay.bytes_needed(400, 4, (4, 84, 84), 18)


@pytest.mark.parametrize("num_rows", [5, 25, 90])  # before, at and after the first wrap
def test_saved_state_continues_bit_for_bit(num_rows, tmp_path):
    buffer, env = make(25, 2, n_step=3), CountingEnv(2)
    fill(buffer, env, num_rows)
    path = checkpoint.save(tmp_path, "step", 1, {"replay": buffer.run(0).state_dict()})
    copied = make(25, 2, n_step=3)
    copied.run(0).load_state_dict(checkpoint.load(path, ["replay"])["replay"])
    later = [env.step() for _ in range(30)]
    for step in range(30):
        everything = torch.arange(len(buffer.run(0)))
        assert len(buffer.run(0)) == len(copied.run(0))
        for one, other in zip(
            buffer.run(0).gather(everything), copied.run(0).gather(everything), strict=True
        ):
            assert torch.equal(one, other)
        for b in (buffer, copied):
            b.add(*later[step])
    one, other = buffer.run(0).state_dict(), copied.run(0).state_dict()
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, list):
            assert all(torch.equal(a, b) for a, b in zip(value, other[key], strict=True))
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), key


def test_saved_frames_are_compressed_in_several_pieces_and_come_back_exactly():
    frames_per_piece = CHUNK_BYTES // 84**2
    buffer = FrameReplay(2 * frames_per_piece + 500, 1, (4, 84, 84), 18, GAMMA)
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (84, 84), dtype=np.uint8)
    stack = np.zeros((1, 4, 84, 84), np.uint8)
    for step in range(frames_per_piece + 300):
        frame = background.copy()
        frame[step % 80 : step % 80 + 4, step % 77] = 255  # a ball before a picture
        following = np.concatenate([stack[:, 1:], frame[None, None]], axis=1)
        no = np.zeros(1, bool)
        buffer.add(stack, np.zeros(1, int), np.zeros(1, np.float32), no, no, following)
        stack = following
    state = buffer.run(0).state_dict()
    assert len(state["frames"]) == 2
    assert sum(len(piece) for piece in state["frames"]) < 0.05 * 84**2 * (frames_per_piece + 300)
    copied = FrameReplay(2 * frames_per_piece + 500, 1, (4, 84, 84), 18, GAMMA)
    copied.run(0).load_state_dict(copy.deepcopy(state))
    index = torch.arange(0, len(buffer.run(0)), 97)
    assert torch.equal(buffer.run(0).gather(index).next_obs, copied.run(0).gather(index).next_obs)


def test_sampling_is_uniform_and_follows_its_generator():
    buffer = make(10, 2)
    fill(buffer, CountingEnv(2, mean_length=1e9), 30)

    def draw(seed):
        return buffer.run(0).sample(20_000, torch.Generator().manual_seed(seed))

    counts = torch.bincount(torch.unique(draw(0).reward, return_inverse=True)[1], minlength=20)
    # Each count is binomial with standard deviation 31; five of them make a failure by chance negligible.
    assert (counts - 1_000).abs().max() < 5 * 31
    assert torch.equal(draw(0).obs, draw(0).obs)
    assert not torch.equal(draw(0).reward, draw(1).reward)


def test_check_valid_finds_a_broken_chain_and_an_overwritten_frame():
    buffer = make(20, 1)
    fill(buffer, CountingEnv(1, mean_length=1e9), 15)
    buffer._arrays["slot"][7] += 1
    assert "predecessor" in buffer.run(0).check_valid()[1]
    buffer._arrays["slot"][7] -= 1
    buffer._written += buffer._ring
    assert "overwritten" in buffer.run(0).check_valid()[1]


def test_errors_name_the_value():
    buffer = make(8, 2)
    row = list(CountingEnv(2).step())
    row[0] = row[0].astype(np.float32)
    with pytest.raises(ValueError, match=r"obs: expected a row of shape .* uint8, got .* float32"):
        buffer.add(*row)
    state = make(8, 2).run(0).state_dict()
    fill(other := make(8, 2), CountingEnv(2), 3)
    with pytest.raises(ValueError, match="piece of saved frames has 0 bytes, not 75"):
        other.run(0).load_state_dict(state | {"written": torch.tensor([5, 5])})


@pytest.mark.atari
@pytest.mark.parametrize("protocol", ["paper", "classic"])
def test_stacks_equal_those_a_game_handed_out(protocol):
    """Zero padding, no-op starts, lives that end the learner's episode but not the game, truncated games."""
    classic = {"sticky_probability": 0.0, "noop_max": 10, "episodic_life": True}
    config = AtariConfig(max_frames=320, num_threads=1, **(classic if protocol == "classic" else {}))
    env = make_vec("Breakout", 3, 4, None, config)
    obs = env.reset(0)
    rows, ends, cuts = [], 0, 0
    buffer = FrameReplay(3 * 120, 3, (4, 84, 84), 4, GAMMA, n_step=3)
    for _ in range(200):
        action = env.random_action()
        step = env.step(action)
        rows.append((obs, action, step.reward, step.terminated, step.truncated, step.next_obs))
        buffer.add(*rows[-1])
        obs = step.obs
        ends, cuts = ends + step.terminated.sum(), cuts + step.truncated.sum()
    env.close()
    assert cuts and (ends or protocol == "paper")
    assert_equals_naive(buffer, rows, n_step=3)


def test_cleared_frames_give_way_to_those_of_the_next_row():
    buffer, env = make(20, 2, n_step=2), CountingEnv(2)
    fill(buffer, env, 30)
    last = env.step()
    ended = np.ones(2, bool)
    buffer.add(*last[:3], ~ended, ended, last[5])  # a border truncates everything
    env.clock[:], env.episode = 0, env.episode + 1
    env.obs = np.stack([env._first(column) for column in range(2)])
    buffer.run(0).clear()
    rows = fill(buffer, env, 5)
    assert len(buffer.run(0)) == 10 and buffer.run(0).check_valid() == (True, "")
    assert_equals_naive(buffer, rows, 2)
