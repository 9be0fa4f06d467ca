"""One run's parts: what it does before and after the gradient updates of a step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from agents import Agent, Batch, RunReplay
from common.seeding import stream_seed, torch_generator
from envs import human_normalized_score, success_score
from envs.vec import Step, VecEnv
from fire.metrics.cheap import measure
from fire.metrics.costly import diagnose, spectra
from fire.network.slot import NetworkSlot
from fire.resets.registry import make_reset, reset_networks
from training.evaluation import Evaluation, RandomPolicy, evaluate
from training.record import Run
from training.summary import reset_line


@dataclass
class Member:
    """Run, agent, replay, environments and minibatch generator of one run; ``obs`` is what to act on next."""

    run: Run
    agent: Agent
    replay: RunReplay
    env: VecEnv
    eval_env: VecEnv
    sampling: torch.Generator
    obs: np.ndarray

    def start_step(self, worker: Executor | None) -> None:
        """Choose actions for every environment; with a ``worker`` the environments begin to step in its thread."""
        run = self.run
        self.agent.observe(self.obs)
        self._action = self.env.random_action() if run.warming_up else self.agent.act(self.obs, run.env_step)
        run.check_action(self._action)
        self._wait: Callable[[], Step] = partial(self.env.step, self._action)
        if worker is not None:
            self._wait = worker.submit(self._wait).result

    def finish_step(self) -> tuple[np.ndarray, ...]:
        """Take the step or wait for the worker's, whose errors are raised here; return its row of transitions."""
        step = self._wait()
        row = (self.obs, self._action, step.reward, step.terminated, step.truncated, step.next_obs)
        self.obs = step.obs
        self.run.advance(self.env.num_envs, step.episodes)
        return row

    def learned(self, batch: Batch, losses: dict[str, Tensor]) -> None:
        """Keep the losses of the newest update, and let a reset strategy that acts after every update act."""
        run = self.run
        run.log_losses(losses)
        if run.tracker is not None:
            inputs = reset_inputs(run, self.agent, batch, 1, self.agent.update_step)
            run.log_recycled(run.tracker.after_update(*inputs))

    def attend(self) -> None:
        """Log, measure, reset, evaluate and save what is due."""
        run, agent, replay = self.run, self.agent, self.replay
        run.log_if_due(agent, replay)
        if run.metrics_due():
            run.log_plasticity(plasticity(run, agent, replay))
        if reason := run.reset_due():
            reset(run, agent, replay, self.eval_env, reason)
        if run.evaluation_due():
            evaluation(run, agent, self.eval_env, "periodic")
        run.save_if_due(agent, replay, self.env, self.sampling)

    def save(self) -> None:
        self.run.save(self.agent, self.replay, self.env, self.sampling)


def evaluation(run: Run, policy: Agent | RandomPolicy, eval_env: VecEnv, when: str) -> Evaluation:
    """Evaluate at the present step; the best agent so far is kept.

    The random policy plays ``eval.episodes`` even where ``eval.steps`` sets the length of evaluations, which may be
    hundreds of its games; never more than ``eval.steps``.
    """
    if when != "random_policy":
        run.check_finite(policy)
    seed = stream_seed(run.config.seed, "eval_env", run.env_step)
    options = run.config.eval
    result = evaluate(
        policy,
        eval_env,
        None if options.steps and when != "random_policy" else options.episodes,
        seed,
        steps=options.steps,
        unfinished=options.unfinished,
        epsilon=options.epsilon,
    )
    normalized = human_normalized_score(eval_env.env_id, result.mean)
    if run.record_evaluation(result, when, success_score(eval_env.env_id), normalized):
        run.save_best(policy)
    return result


def plasticity(run: Run, agent: Agent, replay: RunReplay) -> dict[str, float]:
    """Measure the plasticity metrics on a probe batch that depends on the run's seed and the present step alone."""
    run.check_finite(agent)
    slots, batch, options = agent.networks(), probe(run, replay), run.config.log
    metrics = measure(slots, batch, dormancy_threshold=options.dormancy_threshold)
    if options.expensive_metrics:
        metrics |= diagnose(slots, batch, torch_generator(run.config.seed, "metrics", run.env_step, 1))
    if options.histograms:
        run.log_histograms(spectra(slots))
    return metrics


def probe(run: Run, replay: RunReplay, count: int = 1) -> Batch:
    """Replayed transitions for metrics and resets, ``count`` minibatches drawn from a stream of their own."""
    generator = torch_generator(run.config.seed, "metrics", run.env_step)
    return replay.sample(count * run.config.log.probe_size, generator)


def reset(run: Run, agent: Agent, replay: RunReplay, eval_env: VecEnv, reason: str) -> None:
    """Reset the networks that the configuration names, with metrics and episodes right before and after."""

    def look(when: str) -> dict[str, float]:
        seen = dict(run.plasticity_now() or {}) if when == "before_reset" else {}
        if not seen:
            seen = plasticity(run, agent, replay)
            run.log(seen)
        if run.config.eval.around_resets:
            seen["mean_return"] = evaluation(run, agent, eval_env, when).mean
        return seen

    before = look("before_reset")
    strategy = make_reset(run.config.reset.strategy, run.config.strategy)
    batch = probe(run, replay, strategy.num_probes)
    slots, batch, generator = reset_inputs(run, agent, batch, 0, run.num_resets)
    report = reset_networks(slots, strategy, batch, generator).scalars()
    if run.config.reset.temperature == "reset":
        agent.reset_temperature()
    if run.config.reset.normalizer == "reset":
        agent.reset_normalizer()
    run.log(report)
    after = look("after_reset")
    record = {
        "reset": run.config.reset.name,
        "reason": reason,
        "report": report,
        "before": before,
        "after": after,
    }
    run.record_reset(record)
    run.say(reset_line(run.env_step, run.num_resets, record))


def reset_inputs(
    run: Run, agent: Agent, batch: Batch, *path: int
) -> tuple[dict[str, NetworkSlot], Batch, torch.Generator]:
    """Return the slots to reset, the batch, and a generator of its own for this reset (sub-stream ``path``)."""
    names = run.config.reset.networks or agent.networks().keys()
    slots = {name: slot for name, slot in agent.networks().items() if name in names}
    return slots, batch, torch_generator(run.config.seed, "reset", *path)
