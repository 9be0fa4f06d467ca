"""The training loop: builds, connects, loops; no mathematics. ``train.py`` is its command line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from agents import Agent, Batch, Replay, make_agent, make_replay, pick_device
from common.memory import keep_freed_memory
from common.run import Run
from common.seeding import stream_seed, torch_generator
from common.summary import reset_line
from configs.run_dir import branch_source, claim_run_dir
from configs.schema import Config
from envs import human_normalized_score, make_evaluation_env, make_training_env, success_score
from envs.vec import VecEnv
from evaluate import Evaluation, RandomPolicy, evaluate
from fire.diagnostics import diagnose, spectra
from fire.metrics import measure
from fire.resets import make_reset, reset_networks
from fire.slot import NetworkSlot
from fire.triggers import Trigger


def train(config: Config, run_dir: Path) -> Run:
    """Run ``config`` in ``run_dir``, from its newest checkpoint if it holds one."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    device = pick_device(config.device)
    env = make_training_env(config)
    eval_env = make_evaluation_env(config, config.eval.num_envs)
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    replay = make_replay(config, env.observation_space, env.action_space, agent.gamma, device)
    sampling = torch_generator(config.seed, "replay")
    tracker = make_reset(config.reset.strategy, config.strategy).tracker()
    branch = branch_source(run_dir, config)

    with (
        contextlib.closing(claim_run_dir(run_dir, config)),
        contextlib.closing(Run(config, run_dir, Trigger(config.trigger), tracker)) as run,
    ):
        obs = run.start(agent, replay, env, sampling, branch)
        run.say_what_lies_ahead(device, replay.nbytes)
        if obs is None:
            obs = env.reset(stream_seed(config.seed, "train_env"))
            evaluation(run, RandomPolicy(eval_env), eval_env, "random_policy")
        if branch and (reason := run.reset_due()):
            reset(run, agent, replay, eval_env, reason)
        while run.going:
            agent.observe(obs)
            action = env.random_action() if run.warming_up else agent.act(obs, run.env_step)
            run.check_action(action)
            step = env.step(action)
            replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
            obs = step.obs
            run.advance(env.num_envs, step.episodes)

            for _ in range(run.updates_owed()):
                batch = replay.sample(config.replay.batch_size, sampling)
                run.log_losses(agent.update(batch))
                if run.tracker is not None:
                    inputs = reset_inputs(run, agent, batch, 1, agent.update_step)
                    run.log_recycled(run.tracker.after_update(*inputs))

            run.log_if_due(agent, replay)
            if run.metrics_due():
                run.log_plasticity(plasticity(run, agent, replay))
            if reason := run.reset_due():
                reset(run, agent, replay, eval_env, reason)
            if run.evaluation_due():
                evaluation(run, agent, eval_env, "periodic")
            run.save_if_due(agent, replay, env, sampling)

        run.save(agent, replay, env, sampling)
    env.close()
    eval_env.close()
    return run


def evaluation(run: Run, policy: Agent | RandomPolicy, eval_env: VecEnv, when: str) -> Evaluation:
    """Evaluate at the present step; the best agent so far is kept."""
    if when != "random_policy":
        run.check_finite(policy)
    seed = stream_seed(run.config.seed, "eval_env", run.env_step)
    options = run.config.eval
    result = evaluate(
        policy,
        eval_env,
        options.episodes,
        seed,
        steps=options.steps,
        unfinished=options.unfinished,
        epsilon=options.epsilon,
    )
    normalized = human_normalized_score(eval_env.env_id, result.mean)
    if run.record_evaluation(result, when, success_score(eval_env.env_id), normalized):
        run.save_best(policy)
    return result


def plasticity(run: Run, agent: Agent, replay: Replay) -> dict[str, float]:
    """Measure the plasticity metrics on a probe batch that depends on the run's seed and the present step alone."""
    run.check_finite(agent)
    slots, batch, options = agent.networks(), probe(run, replay), run.config.log
    metrics = measure(slots, batch, dormancy_threshold=options.dormancy_threshold)
    if options.expensive_metrics:
        metrics |= diagnose(slots, batch, torch_generator(run.config.seed, "metrics", run.env_step, 1))
    if options.histograms:
        run.log_histograms(spectra(slots))
    return metrics


def probe(run: Run, replay: Replay, count: int = 1) -> Batch:
    """Replayed transitions for metrics and resets, ``count`` minibatches drawn from a stream of their own."""
    generator = torch_generator(run.config.seed, "metrics", run.env_step)
    return replay.sample(count * run.config.log.probe_size, generator)


def reset(run: Run, agent: Agent, replay: Replay, eval_env: VecEnv, reason: str) -> None:
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
