"""The training loop, from top to bottom: act, step, store, learn, and what is due. ``train.py`` is its command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from agents import make_agent, make_replay, pick_device
from agents.learner import Agents, Learner, make_learner
from agents.numerics import Numerics
from common import checkpoint
from common.memory import keep_freed_memory
from common.seeding import stream_seed
from configs.schema import Config
from envs import make_evaluation_env, make_training_env
from training.checks import require_known_metric, require_repeatable
from training.due import Clock
from training.evaluation import EvaluationStopped
from training.folder import open_runs, starting_points
from training.interrupt import Interrupt
from training.mirrors import require_mirror
from training.profiling import StepProfiler
from training.trainer import Trainer, TrainingDiverged


def train(config: Config, run_dir: Path) -> Trainer:
    """Run ``config`` in ``run_dir``, from its newest checkpoint if it holds one."""
    return train_together([config], [run_dir])[0]


def train_together(configs: Sequence[Config], run_dirs: Sequence[Path]) -> list[Trainer]:
    """Train K runs that differ in seed or reset as one program; each has its own folder and equals its single run.

    One call acts for all of them, one steps all environments, one stores, one learns. What belongs to a single run
    (due dates, resets, metrics, evaluations, logs, checkpoints) happens on its views, in its ``Trainer``.

    Raises:
        ConfigError: options that a program cannot follow, or runs saved at different steps.
        TrainingDiverged: NaN or infinity in an action, a loss or a weight.
    """
    config = configs[0]  # what the loop reads is the same in all
    require_mirror(configs)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    with contextlib.ExitStack() as cleanup:
        # Build
        interrupt = cleanup.enter_context(Interrupt())
        device = pick_device(config.device)
        run_seeds = [each.seed for each in configs]
        env = cleanup.enter_context(contextlib.closing(make_training_env(config, run_seeds)))
        spaces = env.observation_space, env.action_space
        single = [make_agent(each, *spaces, env.max_episode_steps, device) for each in configs]
        replay = make_replay(config, *spaces, single[0].gamma, device, len(configs))
        clock = Clock(config)
        rendering = "rgb_array" if config.log.video else None
        eval_envs = [
            cleanup.enter_context(
                contextlib.closing(make_evaluation_env(each, each.eval.num_envs, rendering))
            )
            for each in configs
        ]
        for agent, each in zip(single, configs, strict=True):
            require_known_metric(agent, each)
        if starting_points(run_dirs, configs)[1]:  # errors up to here leave no folder behind
            require_repeatable(config)
        sources = open_runs(run_dirs, configs, cleanup)
        trainers = []
        for index, (each, run_dir) in enumerate(zip(configs, run_dirs, strict=True)):
            parts = (single[index], replay.run(index), env, eval_envs[index], clock, sources[index])
            trainers.append(Trainer(each, run_dir, index, *parts, lambda: interrupt.requested))
            cleanup.callback(trainers[-1].record.close)
        began = [source for source in sources if source is not None]
        saved = [checkpoint.load(source, ["env"])["env"] for source in began]
        seeds = [stream_seed(each.seed, "train_env") for each in configs]
        with checkpoint.fitting(began[0]) if began else contextlib.nullcontext():
            obs = env.load_state_dict(saved) if saved else env.reset(seeds)
        try:
            for trainer in trainers:
                trainer.start()
        except EvaluationStopped:  # none has begun
            return trainers
        agents = Agents(single, Numerics(config.precision, config.compile))
        learner = make_learner(agents, replay, [trainer.minibatches for trainer in trainers], config)
        worker = cleanup.enter_context(ThreadPoolExecutor(1)) if config.act_lag else None
        profiler = None
        if config.profile:
            profiler = StepProfiler(run_dirs[0], trainers[0].record.say)
            cleanup.enter_context(contextlib.closing(profiler))
        bars = [trainer.record.progress for trainer in trainers if trainer.record.progress.has_bar]

        while clock.env_step < config.total_steps and not interrupt.requested:
            # Act
            by_run = obs.reshape(len(configs), env.num_envs, *obs.shape[1:])
            agents.observe(by_run)
            step = clock.env_step
            action = env.random_action() if clock.warming_up else np.concatenate(agents.act(by_run, step))
            if not np.isfinite(action).all():
                raise TrainingDiverged(f"the policy's action is not finite at env step {step:,}")

            # Step; with act_lag the environments step beside the updates that the last step brought due
            updates = 0
            if worker is None:
                reached = env.step(action)
            else:
                stepping = worker.submit(env.step, action)
                updates = _learn(learner, clock, trainers)
                reached = stepping.result()

            # Store
            ends = reached.terminated, reached.truncated
            replay.add(obs, action, reached.reward, *ends, reached.next_obs)
            if agents.observes_rewards:
                ended = reached.terminated | reached.truncated
                by_env = len(configs), env.num_envs
                agents.observe_rewards(reached.reward.reshape(by_env), ended.reshape(by_env))
            obs = reached.obs
            clock.advance(env.num_envs)
            for episode in reached.episodes:
                trainers[episode.env_index // env.num_envs].record.episode(episode, clock.env_step)

            # Learn
            if worker is None or clock.finished:
                updates += _learn(learner, clock, trainers)

            # What is due
            due = [trainer for trainer in trainers if clock.env_step >= trainer.due.next_step]
            for trainer in due:
                trainer.do_what_is_due()
            for trainer in due:  # only now: what all have saved can be resumed, whatever happens here
                trainer.prune()

            for bar in bars:
                bar.advance(env.num_envs)
            if profiler is not None:
                profiler.step(updates)

        for trainer in trainers:
            trainer.save()
        for trainer in trainers:
            trainer.prune()
    return trainers


def _learn(learner: Learner, clock: Clock, trainers: Sequence[Trainer]) -> int:
    """Make the updates owed, all at once unless a strategy acts after every one; return their number."""
    owed = clock.take_owed()
    if not owed:
        return 0
    watched = [trainer for trainer in trainers if trainer.tracker is not None]
    for count in [1] * owed if watched else [owed]:
        batch, losses = learner.learn(count)
        for trainer in trainers:
            trainer.losses.update(losses)
        for trainer in watched:
            trainer.recycle_units(batch.run(trainer.index))
    return owed
