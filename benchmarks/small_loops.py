"""Whole training loops of small networks: one env step of ours beside CleanRL's and Stable-Baselines3's.

    python -m benchmarks.small_loops [--cases dqn-128 dqn-256 dqn-256-8-step sac] [--rounds 5] [--json FILE]

Every contender acts, steps one environment, stores, samples and learns, with the same sizes, minibatches and replay
ratio, on one thread, in a process of its own; they take turns. Figures are processor time per env step, medians over
rounds, and medians of the ratios within a round. ``share`` is the arithmetic of our updates divided by our time and by
the rate of a float32 product of 2048 x 2048, measured in the same round.

ours        ``training.loop``; from its 2,000th update on, when a single agent has been traced
cleanrl     the loops of CleanRL's dqn.py and sac_continuous_action.py, in our words, with the replay buffer that they
            use, which is Stable-Baselines3's; there are no n-step returns
sb3         ``learn`` of Stable-Baselines3's DQN and SAC

Both SACs of others have SimBa networks (benchmarks/rivals.py) without its running standardisation of observations.
Needs stable-baselines3 beside the requirements.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from agents import Batch, make_agent
from benchmarks import rivals
from benchmarks.timing import ratio
from configs import loader
from configs.schema import Config
from envs import make_training_env
from training import loop
from training.due import Clock

WARM_UP, CAPACITY, GAMMA, LEARNING_RATE, EPSILON = 1000, 10_000, 0.98, 1e-3, 0.05
TARGET_PERIOD = 100  # updates of DQN
SIZE = 2048


class Case(NamedTuple):
    """Sizes that all contenders share."""

    env_id: str
    widths: tuple[int, ...]  # hidden layers of DQN, or widths of SAC's actor and critics
    batch: int
    steps_per_update: int
    n_step: int
    before: int  # env steps before the measurement
    during: int


CASES = {
    "dqn-128": Case("CartPole-v1", (128, 128), 64, 2, 1, 6000, 6000),
    "dqn-256": Case("CartPole-v1", (256, 256), 64, 2, 1, 6000, 6000),
    "dqn-256-8-step": Case("CartPole-v1", (256, 256), 64, 2, 8, 6000, 6000),
    "sac": Case("Pendulum-v1", (64, 128), 128, 1, 1, 3100, 800),
}


def our_config(case: Case) -> Config:
    """The same settings as options of ``train.py``."""
    words = (
        f"--env {case.env_id} --preset quick --reset none --num-threads 1 --device cpu --eval.every 0 "
        "--eval.episodes 1 --log.metrics-every 0 --checkpoint.every 0 "
        f"--total-steps {case.before + case.during + 10} --replay.learning-starts {WARM_UP} "
        f"--replay.replay-capacity {CAPACITY} --replay.batch-size {case.batch} "
        f"--replay.replay-ratio {1 / case.steps_per_update} --replay.n-step {case.n_step} "
        f"--agent.gamma {GAMMA} --agent.learning-rate {LEARNING_RATE} "
    )
    if case.env_id == "CartPole-v1":
        words += (
            f"--algo dqn --agent.hidden-widths {' '.join(map(str, case.widths))} --agent.double-q false "
            f"--agent.target-update-period {TARGET_PERIOD} --agent.epsilon-end {EPSILON} --agent.epsilon-fraction 0.1"
        )
    else:
        actor, critic = case.widths
        words += (
            f"--algo sac --agent.actor-width {actor} --agent.critic-width {critic} --agent.critic-blocks 1"
        )
    return loader.load(words.split())[0]


def ours(case: Case, mark: Callable[[int], None]) -> None:
    """``training.loop``, as ``train.py`` calls it."""
    advance = Clock.advance

    def marked(self: Clock, transitions: int) -> None:
        advance(self, transitions)
        mark(self.env_step)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Clock, "advance", marked):
        loop.train(our_config(case), Path(folder) / "run")


def sb3(case: Case, mark: Callable[[int], None]) -> None:
    """Stable-Baselines3's ``learn``."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback

    class Marks(BaseCallback):
        def _on_step(self) -> bool:
            mark(self.num_timesteps)
            return True

    options: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "buffer_size": CAPACITY,
        "learning_starts": WARM_UP,
        "batch_size": case.batch,
        "gamma": GAMMA,
        "train_freq": case.steps_per_update,
        "n_steps": case.n_step,
        "seed": 0,
        "device": "cpu",
    }
    if case.env_id == "CartPole-v1":
        model = stable_baselines3.DQN(
            "MlpPolicy",
            case.env_id,
            target_update_interval=TARGET_PERIOD * case.steps_per_update,
            exploration_fraction=0.1,
            exploration_final_eps=EPSILON,
            policy_kwargs={"net_arch": list(case.widths)},
            **options,
        )
    else:
        actor, critic = case.widths
        sizes = {"net_arch": {"pi": [actor], "qf": [critic]}}
        model = stable_baselines3.SAC("MlpPolicy", case.env_id, policy_kwargs=sizes, **options)
        rivals.exchange_networks(model, cleanrl_networks(case))
    model.learn(case.before + case.during + 10, callback=Marks())


def cleanrl_networks(case: Case) -> rivals.CleanRL:
    """CleanRL's SAC on SimBa networks of the case's sizes, for Pendulum."""
    config: Any = our_config(case).agent
    return rivals.CleanRL(config, observation=3, action=1)


def cleanrl(case: Case, mark: Callable[[int], None]) -> None:
    """CleanRL's loops."""
    from stable_baselines3.common.buffers import ReplayBuffer

    random.seed(0)
    torch.manual_seed(0)

    def make() -> gym.Env:
        env = gym.wrappers.RecordEpisodeStatistics(gym.make(case.env_id))
        continuous = isinstance(env.action_space, gym.spaces.Box)
        return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)) if continuous else env

    env = gym.vector.SyncVectorEnv([make], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env.single_action_space.seed(0)
    spaces = env.single_observation_space, env.single_action_space
    buffer = ReplayBuffer(CAPACITY, *spaces, "cpu", handle_timeout_termination=False)
    learner = (_CleanRLDQN if case.env_id == "CartPole-v1" else _CleanRLSAC)(case)
    obs, _ = env.reset(seed=0)
    for step in range(case.before + case.during + 1):
        mark(step)
        explores = step < WARM_UP or random.random() < learner.epsilon
        action = np.array([spaces[1].sample()]) if explores else learner.act(torch.Tensor(obs))
        reached, reward, terminated, truncated, infos = env.step(action)
        next_obs = reached.copy()
        for index, cut in enumerate(truncated):
            if cut:
                next_obs[index] = infos["final_obs"][index]
        buffer.add(obs, next_obs, action, reward, terminated, infos)
        obs = reached
        if step >= WARM_UP and step % case.steps_per_update == 0:
            learner.learn(buffer.sample(case.batch))


class _CleanRLDQN:
    epsilon = EPSILON

    def __init__(self, case: Case) -> None:
        def network() -> nn.Sequential:
            layers: list[nn.Module] = []
            fan_in = 4
            for width in case.widths:
                layers += [nn.Linear(fan_in, width), nn.ReLU()]
                fan_in = width
            return nn.Sequential(*layers, nn.Linear(fan_in, 2))

        self.q, self.target = network(), network()
        self.target.load_state_dict(self.q.state_dict())
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=LEARNING_RATE)
        self.updates = 0

    def act(self, obs: torch.Tensor) -> np.ndarray:
        return torch.argmax(self.q(obs), dim=1).numpy()

    def learn(self, data: Any) -> None:
        with torch.no_grad():
            best, _ = self.target(data.next_observations).max(dim=1)
            wanted = data.rewards.flatten() + GAMMA * best * (1 - data.dones.flatten())
        value = self.q(data.observations).gather(1, data.actions).squeeze()
        loss = F.mse_loss(wanted, value)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % TARGET_PERIOD == 0:
            for target, own in zip(self.target.parameters(), self.q.parameters(), strict=True):
                target.data.copy_(own.data)


class _CleanRLSAC:
    epsilon = 0.0

    def __init__(self, case: Case) -> None:
        self.networks = cleanrl_networks(case)

    def act(self, obs: torch.Tensor) -> np.ndarray:
        return self.networks.sample(obs)[0].detach().numpy()

    def learn(self, data: Any) -> None:
        discount = GAMMA * (1 - data.dones.flatten())
        parts = (data.observations, data.actions, data.rewards.flatten(), discount, data.next_observations)
        self.networks.update(Batch(*parts))


CONTENDERS: dict[str, Callable[[Case, Callable[[int], None]], None]] = {
    "ours": ours,
    "cleanrl": cleanrl,
    "sb3": sb3,
}


def work(name: str, case: Case) -> float:
    """Seconds of the processor per env step, in this process."""
    torch.set_num_threads(1)
    marks: dict[int, float] = {}

    def mark(env_step: int) -> None:
        if env_step in (case.before, case.before + case.during):
            marks[env_step] = time.process_time()

    CONTENDERS[name](case, mark)
    begun, ended = marks.values()
    return (ended - begun) / case.during


def arithmetic(case: Case) -> float:
    """Floating-point operations of our updates per env step."""
    config = our_config(case)
    with torch.random.fork_rng():
        env = make_training_env(config, [0])
        spaces = env.observation_space, env.action_space
        agent = make_agent(config, *spaces, env.max_episode_steps, torch.device("cpu"))
        obs, next_obs = torch.randn(2, case.batch, *spaces[0].shape)
        discrete = isinstance(spaces[1], gym.spaces.Discrete)
        action = torch.zeros(case.batch, dtype=torch.int64) if discrete else torch.zeros(case.batch, 1)
        batch = Batch(obs, action, torch.randn(case.batch), torch.full((case.batch,), GAMMA), next_obs)
        with FlopCounterMode(display=False) as counter:
            agent.learn(batch)
        env.close()
    return counter.get_total_flops() / case.steps_per_update


def matrix_rate() -> float:
    """Floating-point operations per second of this core, in a large float32 product."""
    torch.set_num_threads(1)
    left, right = torch.randn(2, SIZE, SIZE)
    left @ right
    begun = time.process_time()
    left @ right
    return 2 * SIZE**3 / (time.process_time() - begun)


def measure(name: str, rounds: int) -> dict[str, float]:
    """Milliseconds per env step of each contender, how many times ours is as fast, our share of the matrix rate."""
    case = CASES[name]
    seconds: dict[str, list[float]] = {
        contender: [] for contender in CONTENDERS if contender != "cleanrl" or case.n_step == 1
    }
    shares = []
    for turn in range(rounds):
        rate = matrix_rate()
        for contender in _rotated(list(seconds), turn):
            command = [sys.executable, "-m", "benchmarks.small_loops", "--worker", contender, name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds[contender].append(float(output.splitlines()[-1]))
        shares.append(arithmetic(case) / seconds["ours"][-1] / rate)
    figures = {f"{contender} ms": 1e3 * statistics.median(values) for contender, values in seconds.items()}
    for contender, values in seconds.items():
        if contender != "ours":
            figures[f"ours against {contender}"] = ratio(seconds["ours"], values)
    return figures | {"share": statistics.median(shares)}


def _rotated(names: list[str], turn: int) -> Iterator[str]:
    turn %= len(names)
    yield from names[turn:] + names[:turn]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_loops", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        contender, name = args.worker
        print(work(contender, CASES[name]))
        return
    figures = {name: measure(name, args.rounds) for name in args.cases}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
