"""The training loop: builds, connects, loops; no mathematics. ``train.py`` is its command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from agents import make_agent, make_replay, pick_device
from agents.learner import Learner, make_learner, run_losses
from agents.replay import Replay
from agents.stack import Stack
from common.memory import keep_freed_memory
from common.seeding import stream_seed, torch_generator
from configs.schema import Config
from envs import make_evaluation_env, make_training_env
from fire.resets.registry import make_reset
from fire.triggers import Trigger
from training.evaluation import RandomPolicy
from training.folder import branch_source, check_same_step, claim_run_dir
from training.profiling import StepProfiler
from training.record import Run
from training.trainer import Member, evaluation, reset


def train(config: Config, run_dir: Path) -> Run:
    """Run ``config`` in ``run_dir``, from its newest checkpoint if it holds one."""
    return train_together([config], [run_dir])[0]


def train_together(configs: Sequence[Config], run_dirs: Sequence[Path]) -> list[Run]:
    """Train one run, or several that differ in seed or reset as one batched program; each has its own folder.

    Raises:
        ConfigError: options that a batched program cannot follow, or runs saved at different steps.
    """
    if configs[0].num_threads:
        torch.set_num_threads(configs[0].num_threads)
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        replays: list[Replay] = []  # one buffer of all runs, made by the first
        members = [
            _begin(config, run_dir, k, len(configs), replays, stack)
            for k, (config, run_dir) in enumerate(zip(configs, run_dirs, strict=True))
        ]
        learner = _learner(members, replays[0])

        def learn() -> int:
            owed, *_ = [member.run.take_owed() for member in members]
            # A strategy that acts after every update waits for each; otherwise the block is made at once.
            tracked = any(member.run.tracker is not None for member in members)
            for count in [1] * owed if tracked else [owed] * (owed > 0):
                batch, losses = learner.learn(count)
                for k, member in enumerate(members):
                    member.learned(batch.run(k), run_losses(losses, k))
            return owed

        worker = stack.enter_context(ThreadPoolExecutor(1)) if configs[0].act_lag else None
        profiler = None
        if configs[0].profile:
            profiler = stack.enter_context(contextlib.closing(StepProfiler(run_dirs[0], members[0].run.say)))
        while all(member.run.going for member in members):
            for member in members:
                member.start_step(worker)
            updates = learn() if worker else 0
            rows = [member.finish_step() for member in members]
            replays[0].add(*map(np.concatenate, zip(*rows, strict=True)))
            if not worker or members[0].run.finished:
                updates += learn()
            for member in members:
                member.attend()
            if profiler is not None:
                profiler.step(updates)
        for member in members:
            member.save()
    return [member.run for member in members]


def _begin(
    config: Config, run_dir: Path, k: int, num_runs: int, replays: list[Replay], stack: contextlib.ExitStack
) -> Member:
    """Build the parts of run ``k`` and restore its newest checkpoint; ``stack`` closes them."""
    device = pick_device(config.device)
    env = stack.enter_context(contextlib.closing(make_training_env(config)))
    eval_env = stack.enter_context(contextlib.closing(make_evaluation_env(config, config.eval.num_envs)))
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    if not replays:
        spaces = (env.observation_space, env.action_space)
        replays.append(make_replay(config, *spaces, agent.gamma, device, num_runs))
    replay = replays[0].run(k)
    sampling = torch_generator(config.seed, "replay")
    tracker = make_reset(config.reset.strategy, config.strategy).tracker()
    branch = branch_source(run_dir, config)

    stack.enter_context(contextlib.closing(claim_run_dir(run_dir, config)))
    run = stack.enter_context(contextlib.closing(Run(config, run_dir, Trigger(config.trigger), tracker)))
    obs = run.start(agent, replay, env, sampling, branch)
    run.say_what_lies_ahead(device, replay.nbytes)
    if obs is None:
        obs = env.reset(stream_seed(config.seed, "train_env"))
        evaluation(run, RandomPolicy(eval_env), eval_env, "random_policy")
    if branch and (reason := run.reset_due()):
        reset(run, agent, replay, eval_env, reason)
    return Member(run, agent, replay, env, eval_env, sampling, obs)


def _learner(members: Sequence[Member], replay: Replay) -> Learner:
    """What makes the updates of all members."""
    check_same_step([member.run for member in members])
    stack = Stack([member.agent for member in members])
    return make_learner(stack, replay, [member.sampling for member in members], members[0].run.config)
