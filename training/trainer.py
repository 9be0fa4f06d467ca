"""``Trainer``: one run, its parts and their saved state; it measures, resets, evaluates, saves."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents import Agent, Batch, RunReplay
from common import checkpoint
from common.schedules import first_reached
from common.seeding import stream_seed, torch_generator
from common.video import Clip
from configs.schema import Config
from envs.vec import VecEnv
from fire.metrics.cheap import measure
from fire.metrics.costly import diagnose, spectra, spectra_work
from fire.network.slot import NetworkSlot
from fire.resets.registry import make_reset, reset_networks
from training.due import Clock, Due
from training.evaluation import Evaluation, EvaluationStopped, Frames, Policy, RandomPolicy, evaluate
from training.record import Record

CHEAP_SPECTRA = 1e9  # multiplications of ``spectra``; that many (Nature's network) took 0.9 s on one core


class TrainingDiverged(RuntimeError):
    """A loss, a weight or an action became NaN or infinite."""


class Trainer:
    """Trainer: everything of one run but the loop, which steps all runs of a program together.

    Args:
        config: of the run.
        run_dir: its folder, claimed.
        index: its place among the runs of the program.
        agent, replay: its own, or its views of what all runs share.
        env: the environments of all runs.
        eval_env: its own.
        clock: of the program.
        source: checkpoint that it goes on from, its own or another run's; None: it begins from nothing.
        stop: whether someone has asked to stop, which evaluations do not wait for.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        index: int,
        agent: Agent,
        replay: RunReplay,
        env: VecEnv,
        eval_env: VecEnv,
        clock: Clock,
        source: Path | None,
        stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.index = index
        self.agent = agent
        self.replay = replay
        self.env = env
        self.eval_env = eval_env
        self.clock = clock
        self.strategy = make_reset(config.reset.strategy, config.reset.options)
        self.tracker = self.strategy.tracker()
        # A strategy that acts after every update, or never, has no reset points.
        self.due = Due(config, clock, config.reset.strategy != "none" and self.tracker is None)
        self.minibatches = torch_generator(config.seed, "replay")
        self.losses: dict[str, Tensor] = {}  # newest ones, (K,) each: one for every run of the program
        self.best_return = -math.inf
        self._recycled: collections.Counter[str] = collections.Counter()  # units by network since the log
        self._measured: tuple[int, Mapping[str, float]] = (-1, {})  # env step and newest plasticity metrics
        self._unfinished_reset: dict[str, Any] | None = None  # done, its evaluation afterwards not yet
        self._saved_at = -1
        self._source = source
        self._stop = stop
        if source is None:
            self.record = Record(config, run_dir, None, 0)
        else:
            self._restore(source)

    def _restore(self, source: Path) -> None:
        """Go on from the run's own checkpoint bit for bit, or begin at another run's.

        A branch shares that run's history up to there; its resets, triggers, trackers and best score start anew.
        """
        state = checkpoint.load(source, ["agent", "replay", "run"])
        run = state["run"]
        with checkpoint.fitting(source):
            self.agent.load_state_dict(state["agent"])
            self.replay.load_state_dict(state["replay"])
            self.minibatches.set_state(run["replay_generator"])
            self.clock.load_state_dict(run["clock"])
            self.losses = {
                name: torch.full((self.index + 1,), value) for name, value in run["losses"].items()
            }
            if self._is_own(source):
                self.best_return = run["best_return"]
                self._recycled.update(run["recycled"])
                if self.tracker is not None:
                    self.tracker.load_state_dict(run["tracker"], self.replay.device)
                self.due.load_state_dict(run["due"])
                self._unfinished_reset = run.get("unfinished_reset")
                if measured := run.get("measured"):
                    self._measured = (self.clock.env_step, measured)
                self._saved_at = self.clock.env_step
            else:
                self.due.begin_branch(run["due"])
            lines = run["record"].get("lines", {})
        step, branch_of = self.clock.env_step, None
        if self._is_own(source):
            for kind in ("best", "step"):  # where the run will come again
                checkpoint.discard_after(self.checkpoint_dir, kind, step)
        else:
            branch_of = source.resolve().parents[1]
        self.record = Record(self.config, self.run_dir, step, self.agent.update_step, branch_of, lines)
        with checkpoint.fitting(source):
            self.record.load_state_dict(run["record"])

    def _is_own(self, source: Path) -> bool:
        return source.parent == self.checkpoint_dir

    def start(self) -> None:
        """Say where the run stands and do what comes before its first step.

        That is the random policy's score, the reset at the very step at which a branch begins, or what an interruption
        has put off.

        Raises:
            EvaluationStopped: the run has not begun, so there is nothing to save.
        """
        self.record.say(
            f"run folder {self.run_dir}, from env step {self.clock.env_step:,} of {self.config.total_steps:,}, "
            f"on {self.replay.device}, replay {self.replay.nbytes / 1e6:,.0f} MB"
        )
        scheduled = self.config.reset.strategy != "none" and self.tracker is None
        if scheduled and not self.due.resets_possible:
            self.record.say(
                "warning: no reset will happen: neither reset.every nor reset.at falls before total_steps"
            )
        if self._source is None:
            self.evaluate("random_policy")
        elif not self._is_own(self._source):
            if reason := self.due.reset():
                self.reset(reason)
                self.due.look_ahead()
        elif self.has_left_over:
            self.do_what_is_due()

    @property
    def finished(self) -> bool:
        """Whether the run is over, its last evaluation included."""
        return self.clock.finished and not self.has_left_over

    @property
    def has_left_over(self) -> bool:
        """Whether an interruption has put off something that is due at this step."""
        return self._unfinished_reset is not None or self.due.left_over

    @property
    def saved_at(self) -> int | None:
        """Env step of the newest checkpoint; None: there is none."""
        return None if self._saved_at < 0 else self._saved_at

    @property
    def checkpoint_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    # What is due between two steps

    def recycle_units(self, batch: Batch) -> None:
        """Let a strategy that acts after every update act; ``batch`` is that of the update."""
        if self.tracker is not None:
            slots, generator = (
                self._slots(),
                torch_generator(self.config.seed, "reset", 1, self.agent.update_step),
            )
            self._recycled.update(self.tracker.after_update(slots, batch, generator))

    def do_what_is_due(self) -> None:
        """Log, measure, reset, evaluate and save what is due at this step.

        Whoever asks to stop does not wait for an evaluation: it and what comes after it stay due, are saved as such,
        and are done first when the run is resumed.
        """
        due = self.due
        self._saved_at = -1
        if due.log():
            self.log()
        if due.metrics():
            due.take_metrics(self.measure())
        before = due.state_dict()
        try:
            if self._unfinished_reset is not None:
                self._finish_reset()
            elif reason := due.reset():
                self.reset(reason)
            before = due.state_dict()
            if due.evaluation():
                self.evaluate("periodic")
                before = due.state_dict()
            if due.change():
                self.finish_task()
        except EvaluationStopped:
            if self._unfinished_reset is None:
                due.load_state_dict(before)
            return
        if due.checkpoint():
            self.save()
        due.look_ahead()

    def log(self) -> None:
        """Write rollout, train and time scalars; see ``check_finite`` for errors."""
        self.check_finite()
        step = self.clock.env_step
        values = {"rollout/replay_size": float(len(self.replay))}
        if (epsilon := self.agent.epsilon(step)) is not None:
            values["rollout/exploration_rate"] = epsilon
        if self.tracker is not None:
            values |= {f"reset/{name}/recycled_units": float(n) for name, n in self._recycled.items()}
            self._recycled.clear()
        if self.losses:
            values |= {f"train/{name}": value for name, value in self._newest_losses().items()}
            values["train/n_updates"] = self.agent.update_step
        self.record.interval(values, step, self.agent.update_step)

    def measure(self) -> dict[str, float]:
        """Measure and log plasticity, on a probe batch that depends on the run's seed and the present step alone."""
        self.check_finite()
        step, options = self.clock.env_step, self.config.log
        slots, batch = self.agent.networks(), self._probe_batch(1)
        metrics = measure(slots, batch, dormancy_threshold=options.dormancy_threshold)
        if options.expensive_metrics:
            metrics |= diagnose(slots, batch, torch_generator(self.config.seed, "metrics", step, 1))
        if options.histograms:
            self.record.histograms(spectra(slots), step)
        self.record.scalars(metrics, step)
        self._measured = (step, metrics)
        return metrics

    def reset(self, reason: str) -> None:
        """Reset the networks that the configuration names, with metrics and episodes right before and after."""
        config, step = self.config, self.clock.env_step
        before = self._look("before_reset")
        batch = self._probe_batch(self.strategy.num_minibatches)
        generator = torch_generator(config.seed, "reset", 0, self.due.num_resets)
        report = reset_networks(self._slots(), self.strategy, batch, generator, self._probe_batch(1))
        if config.reset.temperature == "reset":
            self.agent.reset_temperature()
        if config.reset.normalizer == "reset":
            self.agent.reset_normalizer()
        self._measured = (-1, {})
        self.record.scalars(report.scalars(), step)
        self._unfinished_reset = {
            "reset": config.reset.name,
            "reason": reason,
            "report": report.scalars(),
            "kept": {network: dict(figures) for network, figures in report.kept.items()},
            "before": before,
        }
        self._finish_reset()

    def _finish_reset(self) -> None:
        """Look at the networks after their reset, and write down what was seen before and after it."""
        seen = {**(self._unfinished_reset or {}), "after": self._look("after_reset")}
        self._unfinished_reset = None
        self.due.note_reset()
        self.record.reset(seen, self.clock.env_step, self.due.num_resets)

    def _look(self, when: str) -> dict[str, float]:
        """What a reset is judged by: the plasticity metrics of this step and, unless switched off, the return."""
        step, metrics = self._measured
        seen = dict(metrics if step == self.clock.env_step else self.measure())
        slots = self.agent.networks()
        if self.config.log.histograms is None and spectra_work(slots) <= CHEAP_SPECTRA:
            self.record.histograms(spectra(slots), self.clock.env_step)
        if self.config.eval.around_resets:
            seen["mean_return"] = self.evaluate(when).mean
        return seen

    def evaluate(self, when: str) -> Evaluation:
        """Play greedy episodes, or random ones for ``random_policy``; the best policy so far is kept.

        The random policy plays ``eval.episodes`` even where ``eval.steps`` sets the length of evaluations, which may
        be hundreds of its games; never more than ``eval.steps``.
        """
        options, step = self.config.eval, self.clock.env_step
        is_random = when == "random_policy"
        if not is_random:
            self.check_finite()
        filmed = self.config.log.video and (when != "periodic" or self.clock.finished)
        clip = Clip(self.eval_env.frames_per_second) if filmed else None
        result = self._play(
            RandomPolicy(self.eval_env) if is_random else self.agent,
            self.config.env.change.task_trained(step),
            stream_seed(self.config.seed, "eval_env", step),
            None if options.steps and not is_random else options.episodes,
            clip,
        )
        if clip is not None:
            self.record.clip(clip, "end" if when == "periodic" else when, step)
        if result.cut_off:
            self.record.say(
                f"step {step:>9,}  {result.cut_off} episodes of the {when} evaluation were cut off at "
                f"eval.max_episode_steps {options.max_episode_steps:,}"
            )
        self.record.evaluation(result, when, step)
        if not is_random:
            self.due.note_evaluation()
            if result.mean > self.best_return:
                self.best_return = result.mean
                checkpoint.save(self.checkpoint_dir, "best", step, {"agent": self.agent.policy_state()})
                checkpoint.prune(self.checkpoint_dir, "best", keep=1)
        return result

    def _play(
        self, policy: Policy, task: int, seed: int, episodes: int | None, frames: Frames | None = None
    ) -> Evaluation:
        """Evaluate ``policy`` as ``config.eval`` says, in ``task``; see ``evaluate`` for the rest."""
        options = self.config.eval
        if self.config.env.change.period:
            self.eval_env.set_task(task, self.env, self.index)
        return evaluate(
            policy,
            self.eval_env,
            episodes,
            seed,
            frames,
            steps=options.steps,
            unfinished=options.unfinished,
            epsilon=options.epsilon,
            max_episode_steps=options.max_episode_steps,
            stop=self._stop,
        )

    def finish_task(self) -> None:
        """Write what became of the task that ends at this step, and prepare for the next one.

        The environments have begun it already; networks that are to be reset have been.
        """
        change, options, step = self.config.env.change, self.config.eval, self.clock.env_step
        previous, on_previous = change.task_trained(step) - 1, None
        if change.evaluate_previous and previous >= 0:
            self.check_finite()
            seed = stream_seed(self.config.seed, "eval_env", step, 1)
            on_previous = self._play(
                self.agent, previous, seed, None if options.steps else options.episodes
            ).mean
        self.record.task(step, on_previous)
        if change.replay == "clear":
            self.replay.clear()

    def save(self) -> None:
        """Write a checkpoint from which the run goes on bit for bit, unless this step has one already.

        Older ones stay until ``prune``, for runs of one program must find a step that all have saved.
        """
        if self._saved_at == self.clock.env_step:
            return
        self.check_finite()
        self._saved_at = self.clock.env_step
        parts = {
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
            "env": self.env.state_dict(self.index),
            "run": {
                "clock": self.clock.state_dict(),
                "due": self.due.state_dict(),
                "record": self.record.state_dict(),
                "unfinished_reset": self._unfinished_reset,
                "measured": dict(self._measured[1]) if self._measured[0] == self.clock.env_step else {},
                "best_return": self.best_return,
                "losses": self._newest_losses(),
                "recycled": dict(self._recycled),
                "tracker": None if self.tracker is None else self.tracker.state_dict(),
                "replay_generator": self.minibatches.get_state(),
            },
        }
        others = [] if self._source is None or self._is_own(self._source) else [self._source]
        checkpoint.save(self.checkpoint_dir, "step", self.clock.env_step, parts, ["replay"], others)

    def prune(self) -> None:
        """Delete the checkpoints beyond the number that is kept, but those that are kept for good."""
        options = self.config.checkpoint
        for_good = {first_reached(step, self.config.env.num_envs) for step in options.at}
        checkpoint.prune(self.checkpoint_dir, "step", options.keep, for_good)

    def check_finite(self) -> None:
        """Stop before broken weights are evaluated, reset or saved.

        Raises:
            TrainingDiverged: a loss or a weight is not finite; the newest checkpoint stays as it is.
        """
        where = f"at env step {self.clock.env_step:,}"
        for name, value in self._newest_losses().items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"train/{name} is {value} {where}")
        parameters = {
            f"{network}/{name}": parameter
            for network, slot in self.agent.networks().items()
            for name, parameter in slot.module.named_parameters()
        }
        # Asked once for all of them: every answer is a wait for the device.
        finite = torch.stack([parameter.isfinite().all() for parameter in parameters.values()])
        if not finite.all():
            bad = next(name for name, good in zip(parameters, finite.tolist(), strict=True) if not good)
            raise TrainingDiverged(f"{bad} is not finite {where}")

    def _newest_losses(self) -> dict[str, float]:
        if not self.losses:
            return {}
        values = torch.stack([value[self.index] for value in self.losses.values()])
        return dict(zip(self.losses, values.tolist(), strict=True))

    def _probe_batch(self, count: int) -> Batch:
        """Replayed transitions for metrics and resets, ``count`` minibatches drawn from a stream of their own."""
        generator = torch_generator(self.config.seed, "metrics", self.clock.env_step)
        return self.replay.sample(count * self.config.log.probe_size, generator)

    def _slots(self) -> dict[str, NetworkSlot]:
        """The networks that resets may touch."""
        slots = self.agent.networks()
        return {name: slots[name] for name in self.config.reset.networks or slots}
