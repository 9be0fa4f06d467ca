"""One contender of ``benchmarks.atari`` in a process of its own: plays a slice of random steps for every line it reads.

    python atari_worker.py ours|ale-py|emulator|published GAME NUM_ENVS

``published`` is the wrapper chain of FIRE's DQN script (isaac7778/FIRE, rl/dqn/cleanrl/dqn_atari.py, ``make_env``),
written from its description for gymnasium 0.28 and 1.x alike: this file needs neither PyTorch nor the rest of the suite
for it, so that it also runs under the interpreter with the script's pinned packages. ``ale-py`` is its vector
environment as we configure it, without what ours adds; ``emulator`` only plays four frames and reads the last two in
grey, which any environment on ALE must do.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

SLICE = 400  # env steps, of all environments together
PACKAGES = ("gymnasium", "ale-py", "numpy", "opencv-python-headless")


class MaxAndSkip(gym.Wrapper):
    """Hold an action for four frames, sum the rewards, show the maximum of the last two frames in colour."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._last_two = np.zeros((2, *env.observation_space.shape), dtype=np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, terminated, truncated, info = 0.0, False, False, {}
        for frame in range(4):
            obs, reward, terminated, truncated, info = self.env.step(action)
            if frame >= 2:
                self._last_two[frame - 2] = obs
            total += float(reward)
            if terminated or truncated:
                break
        return self._last_two.max(axis=0), total, terminated, truncated, info


class ClipReward(gym.RewardWrapper):
    """Learn from the sign."""

    def reward(self, reward: float) -> float:
        return float(np.sign(reward))


class StickyAction(gym.Wrapper):
    """Repeat the action played before with probability 0.25."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._held = 0
        return self.env.reset(**kwargs)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.np_random.random() >= 0.25:
            self._held = action
        return self.env.step(self._held)


def published_env(game: str) -> gym.Env:
    """Build one environment as the script does; games by their names in CamelCase."""
    import ale_py  # noqa: F401  (registers the games)

    modern = not gym.__version__.startswith("0.")
    env = gym.make(f"{game}NoFrameskip-v4")
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = StickyAction(ClipReward(MaxAndSkip(env)))
    env = gym.wrappers.ResizeObservation(env, (84, 84))
    env = gym.wrappers.GrayscaleObservation(env) if modern else gym.wrappers.GrayScaleObservation(env)
    env = gym.wrappers.FrameStackObservation(env, 4) if modern else gym.wrappers.FrameStack(env, 4)
    return gym.wrappers.TimeLimit(env, max_episode_steps=100_000)


def published_envs(game: str, num_envs: int) -> gym.vector.AsyncVectorEnv:
    """Build them in processes of their own, as the script does."""
    return gym.vector.AsyncVectorEnv([functools.partial(published_env, game)] * num_envs)


def play_published(game: str, num_envs: int) -> Iterator[None]:
    """Play a slice at every ``next``."""
    envs = published_envs(game, num_envs)
    envs.reset(seed=0)
    chance = np.random.default_rng(0)
    while True:
        yield
        for _ in range(SLICE // num_envs):
            envs.step(chance.integers(envs.single_action_space.n, size=num_envs))


def play_ours(game: str, num_envs: int) -> Iterator[None]:
    """Play a slice at every ``next`` on one thread of this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from configs.schema import AtariConfig
    from envs import make_vec

    env = make_vec(game, num_envs, 4, atari=AtariConfig(num_threads=1))
    env.reset(seeds=0)
    chance = np.random.default_rng(0)
    while True:
        yield
        for _ in range(SLICE // num_envs):
            env.step(chance.integers(env.action_space.n, size=num_envs))


def play_ale_py(game: str, num_envs: int) -> Iterator[None]:
    """Play a slice at every ``next`` on ale-py's vector environment, one thread."""
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(
        snake_case(game), num_envs, num_threads=1, noop_max=0, use_fire_reset=False, reward_clipping=False
    )
    env.reset(seed=0)
    chance = np.random.default_rng(0)
    while True:
        yield
        for _ in range(SLICE // num_envs):
            env.step(chance.integers(env.single_action_space.n, size=num_envs))


def play_emulator(game: str, num_envs: int) -> Iterator[None]:
    """Play a slice at every ``next`` on bare consoles."""
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    consoles = [ALEInterface() for _ in range(num_envs)]
    for console in consoles:
        console.setFloat("repeat_action_probability", 0.0)
        console.loadROM(roms.get_rom_path(snake_case(game)))
    actions = consoles[0].getMinimalActionSet()
    screens = np.zeros((2, *consoles[0].getScreenDims()), dtype=np.uint8)
    chance = np.random.default_rng(0)
    while True:
        yield
        for _ in range(SLICE // num_envs):
            for console, action in zip(consoles, chance.integers(len(actions), size=num_envs), strict=True):
                for frame in range(4):
                    console.act(actions[action])
                    if frame >= 2:
                        console.getScreenGrayscale(screens[frame - 2])
                if console.game_over():
                    console.reset_game()


def snake_case(game: str) -> str:
    """Return the cartridge's name of a game in CamelCase."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()


PLAYS = {"ours": play_ours, "ale-py": play_ale_py, "emulator": play_emulator, "published": play_published}


def cpu_seconds() -> float:
    """CPU time so far of this process and of its children, which are still running."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    ticks = 0
    for child in children:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """What the contender runs on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    contender, game, num_envs = sys.argv[1:]
    slices = PLAYS[contender](game, int(num_envs))
    next(slices)
    print(json.dumps(versions()), flush=True)
    for _ in sys.stdin:
        before = cpu_seconds()
        next(slices)
        print(json.dumps({"steps": SLICE, "cpu_seconds": cpu_seconds() - before}), flush=True)


if __name__ == "__main__":
    main()
