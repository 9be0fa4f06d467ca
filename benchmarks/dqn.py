"""DQN on Atari against the published script's learner: gradient updates, end to end, resets, memory.

python -m benchmarks.dqn updates            sampling and one update of 32 transitions
python -m benchmarks.dqn end-to-end         acting, playing, storing and updating at replay ratio 1
python -m benchmarks.dqn resets             cost of the resets beside an update
python -m benchmarks.dqn memory             a full buffer of 1M transitions and its checkpoint

The rival does what FIRE's script (isaac7778/FIRE, rl/dqn/cleanrl) does: complete stacks of four frames in the buffer
and the next row's stack as next observation, the default memory format, values and TD errors by autograd's default
path, Adam without fusion, acting with a graph. End to end it plays its own environments, four processes behind the
wrappers of ``benchmarks.atari``; with --python in that interpreter, which then also needs PyTorch. Rivals run in
processes of their own, one PyTorch thread each, in turns; figures are CPU seconds, those of the environments' processes
included, and medians of paired ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np

CONTENDERS = ("published", "ours", "ours_compiled", "ours_nips")
NUM_ENVS, BATCH, STORED = 4, 32, 20_000
TURN = 4  # vector steps, of four updates each: the clock of other processes ticks in hundredths of a second


# The two learners


class Published:
    """What the script's loop does, with the buffer it imports."""

    def __init__(self, num_actions: int) -> None:
        import torch
        from torch import nn

        self.torch = torch

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(
                    nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
                    nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
                    nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions),
                )  # fmt: skip

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.body(x / 255.0)

        self.q, self.target = Network(), Network()
        self.target.load_state_dict(self.q.state_dict())
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=6.25e-5, eps=1.5e-4)
        self.rows = STORED // NUM_ENVS
        self.obs = np.zeros((self.rows, NUM_ENVS, 4, 84, 84), np.uint8)
        self.action = np.zeros((self.rows, NUM_ENVS, 1), np.int64)
        self.reward = np.zeros((self.rows, NUM_ENVS), np.float32)
        self.done = np.zeros((self.rows, NUM_ENVS), np.float32)
        self.position, self.full = 0, False

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.torch.argmax(self.q(self.torch.Tensor(obs)), dim=1).cpu().numpy()

    def add(self, obs, action, reward, terminated, truncated, next_obs) -> None:
        row, following = self.position, (self.position + 1) % self.rows
        self.obs[row] = np.array(obs)
        self.obs[following] = np.array(next_obs)
        self.action[row], self.reward[row], self.done[row] = action[:, None], reward, terminated
        self.full |= following == 0
        self.position = following

    def update(self) -> None:
        torch, rows = self.torch, self.rows
        if self.full:
            row = (np.random.randint(1, rows, BATCH) + self.position) % rows
        else:
            row = np.random.randint(0, self.position, BATCH)
        env = np.random.randint(0, NUM_ENVS, BATCH)
        obs, next_obs = (torch.tensor(self.obs[r, env]) for r in (row, (row + 1) % rows))
        action = torch.tensor(self.action[row, env])
        reward, done = (torch.tensor(a[row, env].reshape(-1, 1)) for a in (self.reward, self.done))
        with torch.no_grad():
            best, _ = self.target(next_obs).max(dim=1)
            td_target = reward.flatten() + 0.99 * best * (1 - done.flatten())
        old = self.q(obs).gather(1, action).squeeze()
        loss = torch.nn.functional.smooth_l1_loss(td_target, old)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Ours:
    """The suite's agent and replay, with what ``loop.py`` sets up around them."""

    def __init__(self, num_actions: int, compiled: bool = False, network: str = "nature") -> None:
        import torch

        from agents import DQN, FrameReplay
        from common.memory import keep_freed_memory
        from configs.schema import DQNConfig

        keep_freed_memory()
        device = torch.device("cpu")
        self.agent = DQN(DQNConfig(pixel_network=network), (4, 84, 84), num_actions, 0, 1_000_000, 0, device)
        if compiled:
            self.agent.loss = torch.compile(self.agent.loss, dynamic=False)
        self.replay = FrameReplay(STORED, NUM_ENVS, (4, 84, 84), num_actions, 0.99)
        self.generator = torch.Generator().manual_seed(0)
        self.add = self.replay.add

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.agent.act(obs, 10**9)

    def update(self) -> None:
        self.agent.learn(self.replay.run(0).sample(BATCH, self.generator))


# A contender in its own process


class OurPlay:
    """Our environments, which also fill the rival's buffer where only updates are compared."""

    def __init__(self, game: str) -> None:
        from configs.schema import AtariConfig
        from envs import make_vec

        self._env = make_vec(game, NUM_ENVS, 4, None, AtariConfig(num_threads=1))
        self.num_actions = int(self._env.action_space.n)
        self.obs = self._env.reset(0)

    def step(self, learner: Published | Ours, action: np.ndarray) -> None:
        step = self._env.step(action)
        learner.add(self.obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
        self.obs = step.obs


class PublishedPlay:
    """What the script's loop does with its environments.

    The true last frames of truncated games are left out: there is no such game before 100,000 steps.
    """

    def __init__(self, game: str) -> None:
        from benchmarks.atari_worker import published_envs

        self._envs = published_envs(game, NUM_ENVS)
        self.num_actions = int(self._envs.single_action_space.n)
        self.obs, _ = self._envs.reset()

    def step(self, learner: Published, action: np.ndarray) -> None:
        next_obs, reward, terminated, truncated, _ = self._envs.step(action)
        learner.add(self.obs, action, reward, terminated, truncated, next_obs)
        self.obs = next_obs


def work(contender: str, measure: str, game: str) -> None:
    """Answer every line of standard input, a number of rounds, with the CPU seconds they took."""
    import torch

    from benchmarks.atari_worker import cpu_seconds, versions

    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    published = contender == "published"
    play = (PublishedPlay if published and measure == "end-to-end" else OurPlay)(game)
    if published:
        learner = Published(play.num_actions)
    else:
        network = "nips" if contender == "ours_nips" else "nature"
        learner = Ours(play.num_actions, contender == "ours_compiled", network)
    for _ in range(STORED // NUM_ENVS if measure == "updates" else 500):
        play.step(learner, chance.integers(play.num_actions, size=NUM_ENVS))

    def one_round() -> None:
        if measure == "end-to-end":
            play.step(learner, learner.act(play.obs))
        for _ in range(NUM_ENVS):
            learner.update()

    one_round()
    print(json.dumps(versions() | {"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        start = cpu_seconds()
        for _ in range(int(line)):
            one_round()
        print(cpu_seconds() - start, flush=True)


def race(
    measure: str, game: str, rounds: int, contenders: list[str], python: str
) -> dict[str, dict[str, object]]:
    """Let the contenders run in turns; return updates per CPU second and ratios to the first."""
    command = ["-m", "benchmarks.dqn", measure, "--game", game, "--worker"]
    workers = {
        name: subprocess.Popen(
            [python if name == "published" else sys.executable, *command, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in contenders
    }
    found = {name: json.loads(worker.stdout.readline()) for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, worker in workers.items():
            print(TURN, file=worker.stdin, flush=True)
            seconds[name].append(float(worker.stdout.readline()) / TURN)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    first = seconds[contenders[0]]
    return {
        name: {
            "updates_per_cpu_second": NUM_ENVS / median(mine),
            "ratio": median(a / b for a, b in zip(first, mine, strict=True)),
            "ratio_quartiles": np.percentile(
                [a / b for a, b in zip(first, mine, strict=True)], (25, 75)
            ).tolist(),
            "versions": found[name],
        }
        for name, mine in seconds.items()
    }


# Single figures


def resets(game: str, rounds: int, contenders: list[str]) -> dict[str, object]:
    """CPU seconds of one reset, in updates, and as a share of the paper's run of 2.48M updates with one reset."""
    import torch

    from agents import Batch
    from fire.resets.registry import REGISTRY, reset_networks

    torch.set_num_threads(1)
    learner = Ours(18)
    frames = torch.randint(0, 256, (256, 5, 84, 84), dtype=torch.uint8)
    batch = Batch(frames[:, :4], torch.zeros(256).long(), torch.zeros(256), torch.zeros(256), frames[:, 1:])
    small = Batch(*(field[:BATCH] for field in batch))

    def cost(function: Callable[[], object]) -> float:
        function()
        times = []
        for _ in range(rounds):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
        return median(times)

    update = cost(lambda: learner.agent.learn(small))
    figures: dict[str, object] = {"update_seconds": update}
    for name in ("full", "shrink_perturb", "sr_dqn", "fire_paper", "fire_dqn", "redo"):
        generator = torch.Generator().manual_seed(0)
        seconds = cost(lambda: reset_networks(learner.agent.networks(), REGISTRY[name](), batch, generator))  # noqa: B023
        share = seconds / (2_480_000 * update)
        figures[name] = {"seconds": seconds, "in_updates": seconds / update, "share_of_the_run": share}
    return figures


def memory(game: str, rounds: int, contenders: list[str]) -> dict[str, object]:
    """Fill 1M transitions with a game's frames, save and load them."""
    import tempfile

    import torch

    from agents import FrameReplay
    from common import checkpoint
    from configs.schema import AtariConfig
    from envs import make_vec

    env = make_vec(game, NUM_ENVS, 4, None, AtariConfig(num_threads=1))
    buffer = FrameReplay(1_000_000, NUM_ENVS, (4, 84, 84), int(env.action_space.n), 0.99)
    obs = env.reset(0)
    recorded = []
    for _ in range(5_000):
        action = env.random_action()
        step = env.step(action)
        recorded.append((obs, action, step.reward, step.terminated, step.truncated, step.next_obs))
        obs = step.obs
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for row in range(252_000):  # play once, store again and again: stacks stay those of whole games
        buffer.add(*recorded[row % 5_000])
    full = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "transitions": len(buffer.run(0)),
        "reserved_gb": buffer.nbytes / 1e9,
        "resident_gb": (full - base) / 1e9,
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter(), time.process_time()
        path = checkpoint.save(Path(folder), "step", 0, {"replay": buffer.run(0).state_dict()})
        figures["save_seconds"] = time.perf_counter() - start[0]
        figures["save_cpu_seconds"] = time.process_time() - start[1]
        figures["checkpoint_gb"] = sum(f.stat().st_size for f in path.iterdir()) / 1e9
        index = torch.randint(len(buffer.run(0)), (64,), generator=torch.Generator().manual_seed(0))
        wanted = buffer.run(0).gather(index)
        start = time.perf_counter(), time.process_time()
        buffer._frames.zero_()
        buffer.run(0).load_state_dict(checkpoint.load(path, ["replay"])["replay"])
        figures["load_seconds"] = time.perf_counter() - start[0]
        figures["load_cpu_seconds"] = time.process_time() - start[1]
    figures["exact"] = all(
        torch.equal(a, b) for a, b in zip(wanted, buffer.run(0).gather(index), strict=True)
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dqn", description=__doc__.splitlines()[0])
    parser.add_argument("measure", choices=("updates", "end-to-end", "resets", "memory"))
    parser.add_argument("--game", default="Pong", help="Atari game (default: Pong)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of every contender (default: 30)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["published", "ours"])
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter of the rival (default: this one)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.measure, args.game)
        return
    if args.measure in ("updates", "end-to-end"):
        figures = race(args.measure, args.game, args.rounds, args.contenders, args.python)
    else:
        figures = {"resets": resets, "memory": memory}[args.measure](args.game, args.rounds, args.contenders)
    record = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "command": f"python -m benchmarks.dqn {' '.join(sys.argv[1:])}",
        args.measure: figures,
    }
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
