"""The bookkeeping of one run: counters, what is due when, logs, checkpoints, interruption."""

from __future__ import annotations

import collections
import csv
import difflib
import fnmatch
import json
import math
import shutil
import signal
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import checkpoint
from common.schedules import At, Every, UpdateRatio
from training.logger import Logger, truncate_csv
from training.progress import Progress

HISTORY = ("scalars.csv", "evaluations.csv", "resets.jsonl")
RETURN_WINDOW = 100  # finished episodes averaged in rollout/ep_rew_mean, Stable-Baselines3's number
EVALUATION_COLUMNS = (
    "env_step",
    "when",
    "mean_return",
    "standard_error",
    "low_95",
    "high_95",
    "mean_length",
    "episodes",
)


class TrainingDiverged(RuntimeError):
    """A loss, a weight or an action became NaN or infinite."""


class UnknownMetric(ValueError):
    """The trigger's metric is none that this run measures."""


class Run:
    """Everything that a run keeps outside agent, replay and environment.

    Args:
        config: the merged configuration.
        run_dir: existing folder.
        trigger: ``fire.triggers.Trigger``, told of every measurement of the plasticity metrics.
        tracker: what a reset strategy that acts after every update keeps (``Reset.tracker()``), or None.
    """

    def __init__(self, config: Any, run_dir: Path, trigger: Any, tracker: Any | None) -> None:
        self.config = config
        self.run_dir = run_dir
        self.trigger = trigger
        self.tracker = tracker
        self.env_step = 0
        self.num_resets = 0
        self.best_return = -math.inf
        self.last_evaluation: float | None = None
        self._evaluated_at = self._saved_at = -1
        self._plasticity: tuple[int, Mapping[str, float]] = (-1, {})  # newest measurement and its step
        self.stop_requested = False
        # A strategy that acts after every update, or never, has no reset points.
        resets_on = config.reset.strategy != "none" and tracker is None
        self._ratio = UpdateRatio(config.replay.replay_ratio)
        self._owed = 0  # updates due and not yet made
        self._log_due = Every(config.log.every)
        self._metrics_due = Every(config.log.metrics_every)
        self._evaluation_due = Every(config.eval.every)
        self._checkpoint_due = Every(config.checkpoint.every)
        self._reset_every = Every(config.reset.every if resets_on else 0, config.reset.until)
        self._reset_at = At(config.reset.at if resets_on else ())
        self._triggers_on = resets_on
        self._reset_reason: str | None = None  # of the trigger, until the loop asks
        self._recycled: collections.Counter[str] = collections.Counter()
        self._returns: collections.deque[float] = collections.deque(maxlen=RETURN_WINDOW)
        self._lengths: collections.deque[int] = collections.deque(maxlen=RETURN_WINDOW)
        self._losses: dict[str, Any] = {}
        self._logger: Logger | None = None
        self._seconds_before = 0.0  # of earlier sessions of a resumed run

    @property
    def checkpoint_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def resets_possible(self) -> bool:
        """Whether any reset can happen before the end."""
        reset, last = self.config.reset, self.config.total_steps - 1
        every = 0 < reset.every <= min(last, last if reset.until is None else reset.until)
        return self._triggers_on and (
            every or any(s <= last for s in reset.at) or bool(self.trigger.config.metric)
        )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, those before an interruption included."""
        return self._seconds_before + self._progress.seconds

    # What is due

    @property
    def going(self) -> bool:
        """Whether steps are left and nobody asked to stop."""
        return not self.finished and not self.stop_requested

    @property
    def warming_up(self) -> bool:
        """Whether actions are random and no updates are made yet."""
        return self.env_step < self.config.replay.learning_starts

    def advance(self, num_envs: int, episodes: Sequence[Any]) -> None:
        """Count one transition in each of ``num_envs`` environments, the updates it brings due, and ended episodes."""
        self.env_step += num_envs
        if not self.warming_up:  # its transitions bring no updates due
            self._owed += self._ratio.owed(num_envs)
        self._progress.advance(num_envs)
        for episode in episodes:
            self._returns.append(episode.episodic_return)
            self._lengths.append(episode.length)

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.env_step >= self.config.total_steps

    def take_owed(self) -> int:
        """Hand out the gradient updates that are due and not yet made."""
        owed, self._owed = self._owed, 0
        return owed

    @property
    def _has_learned(self) -> bool:
        return self._ratio.updates > self._owed

    def reset_due(self) -> str | None:
        """Return why the networks are to be reset now, or None."""
        reasons = [
            # Each must be asked at every step, or what two of them share would leave one due again at the next.
            "every" if self._reset_every.due(self.env_step) else None,
            "at" if self._reset_at.due(self.env_step) else None,
            self._reset_reason,
        ]
        self._reset_reason = None
        # Before the first update there is nothing to reset; at the very end nothing could be learned from it.
        possible = self._has_learned and not self.finished
        if not possible or self.env_step < self.config.reset.warmup:
            return None
        return next((reason for reason in reasons if reason), None)

    def metrics_due(self) -> bool:
        return self._metrics_due.due(self.env_step) and self._has_learned

    def evaluation_due(self) -> bool:
        """Whether to evaluate now; not if a reset at this very step has just been evaluated."""
        due = self._evaluation_due.due(self.env_step) or self.finished
        return due and self._evaluated_at != self.env_step

    # What is recorded

    def log(self, values: Mapping[str, float]) -> None:
        """Write scalars at the present step."""
        self._logger.scalars(values, self.env_step)

    def log_histograms(self, values: Mapping[str, Any]) -> None:
        """Write histograms at the present step."""
        self._logger.histograms(values, self.env_step)

    def log_plasticity(self, metrics: Mapping[str, float]) -> None:
        """Write a measurement on the metrics' own period and let the trigger see it.

        Raises:
            UnknownMetric: the trigger waits for a metric that is not measured.
        """
        self.log(metrics)
        self._plasticity = (self.env_step, metrics)
        wanted = self.trigger.config.metric
        if wanted and not fnmatch.filter(metrics, wanted):
            near = difflib.get_close_matches(wanted, metrics, n=1, cutoff=0.0)[0]
            raise UnknownMetric(
                f"reset.trigger.metric {wanted}: no such metric is measured; did you mean {near}?"
            )
        if self._triggers_on and self.env_step >= self.config.reset.warmup:
            self._reset_reason = self.trigger.update(self.env_step, metrics)

    def plasticity_now(self) -> Mapping[str, float] | None:
        """The metrics, if they were measured at this very step."""
        step, metrics = self._plasticity
        return metrics if step == self.env_step else None

    def check_finite(self, agent: Any) -> None:
        """Stop before broken weights are evaluated, reset or saved.

        Raises:
            TrainingDiverged: a loss or a weight is not finite; the newest checkpoint stays as it is.
        """
        for name, value in self._losses.items():
            if not math.isfinite(float(value)):
                raise TrainingDiverged(f"train/{name} is {float(value)} at env step {self.env_step:,}")
        for network, slot in agent.networks().items():
            for name, parameter in slot.module.named_parameters():
                if not parameter.isfinite().all():
                    raise TrainingDiverged(f"{network}/{name} is not finite at env step {self.env_step:,}")

    def check_action(self, action: Any) -> None:
        """Stop before an action that is NaN or infinite reaches the environment (TrainingDiverged)."""
        if not np.isfinite(action).all():
            raise TrainingDiverged(f"the policy's action is not finite at env step {self.env_step:,}")

    def log_recycled(self, counts: Mapping[str, int]) -> None:
        """Add up units that a tracker recycled, by network, until the log interval ends."""
        self._recycled.update(counts)

    def log_losses(self, losses: Mapping[str, Any]) -> None:
        """Keep the newest losses (device scalars) until the log interval ends, so that nothing synchronises."""
        self._losses |= losses  # a delayed policy has no loss in some updates

    def log_if_due(self, agent: Any, replay: Any) -> None:
        """Write rollout, time and train scalars when their interval ends; see ``check_finite`` for errors."""
        if not self._log_due.due(self.env_step):
            return
        self.check_finite(agent)
        train = {f"train/{name}": float(value) for name, value in self._losses.items()}
        if train:
            train["train/n_updates"] = agent.update_step
        rollout = {"rollout/replay_size": float(len(replay))}
        if self._returns:
            rollout["rollout/ep_rew_mean"] = sum(self._returns) / len(self._returns)
            rollout["rollout/ep_len_mean"] = sum(self._lengths) / len(self._lengths)
        if (epsilon := agent.epsilon(self.env_step)) is not None:
            rollout["rollout/exploration_rate"] = epsilon
        if self.tracker is not None:
            rollout |= {f"reset/{name}/recycled_units": float(n) for name, n in self._recycled.items()}
            self._recycled.clear()
        speed = self._progress.speed(self.env_step, agent.update_step)
        frames = self.env_step * self.config.env.action_repeat
        self.log(rollout | train | speed | {"time/total_timesteps": self.env_step, "time/frames": frames})
        self._logger.flush()
        self._progress.report(self.env_step, rollout.get("rollout/ep_rew_mean"), self.last_evaluation)

    def record_evaluation(
        self, result: Any, when: str, success_bar: float | None = None, human_normalized: float | None = None
    ) -> bool:
        """Write an evaluation to the logs and to ``evaluations.csv``; return whether it is the best so far.

        Args:
            result: ``evaluate.Evaluation``.
            when: ``periodic``, ``before_reset``, ``after_reset`` or ``random_policy``.
            success_bar: return from which an episode counts as a success, if the task has one.
            human_normalized: the mean return on the scale from a random to a human player, if the game has one.
        """
        low, high = result.interval
        row = (result.mean, result.stderr, low, high, result.mean_length)
        with (self.run_dir / "evaluations.csv").open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                [self.env_step, when, *map(repr, row), len(result.returns)]
            )
        if when == "random_policy":
            return False
        scalars = {"eval/mean_reward": result.mean, "eval/mean_ep_length": result.mean_length}
        if len(result.returns) > 1:
            scalars["eval/stderr_reward"] = result.stderr
        if success_bar is not None:
            scalars["eval/success_rate"] = result.success_rate(success_bar)
        if human_normalized is not None:
            scalars["eval/human_normalized_score"] = human_normalized
        self.log(scalars)
        self.last_evaluation = result.mean
        self._evaluated_at = self.env_step
        is_best = result.mean > self.best_return
        self.best_return = max(self.best_return, result.mean)
        return is_best

    def record_reset(self, record: Mapping[str, Any]) -> None:
        """Append one reset, with the metrics before and after it, to ``resets.jsonl``."""
        self.num_resets += 1
        self.trigger.note_reset(self.env_step)
        with (self.run_dir / "resets.jsonl").open("a") as file:
            file.write(json.dumps({"env_step": self.env_step, "index": self.num_resets, **record}) + "\n")

    # Starting, saving, stopping

    def start(
        self, agent: Any, replay: Any, env: Any, generator: Any, branch: Path | None = None
    ) -> Any | None:
        """Open the logs and restore the newest checkpoint, if there is one.

        Args:
            agent, replay, env, generator: what is restored in place.
            branch: checkpoint of another run to begin with where this one has none; its history is copied, its
                resets, triggers and trackers start anew, and a reset point at that very step is still to come.

        Returns:
            the observations to act on, or None at the start of a run.

        Raises:
            CheckpointError: the newest checkpoint cannot be read; it is never silently replaced by a fresh start.
        """
        saved = checkpoint.find(self.checkpoint_dir, "step")
        source = saved[-1] if saved else branch
        obs = None
        if source is not None:
            state = checkpoint.load(source, ["agent", "replay", "env", "run"])
            agent.load_state_dict(state["agent"])
            replay.load_state_dict(state["replay"])
            obs = env.load_state_dict(state["env"])
            generator.set_state(state["run"]["replay_generator"])
            self._load_state_dict(state["run"])
            if saved:
                self._load_own_state(state["run"], replay.device)
                self._saved_at = self.env_step
            else:
                self._begin_branch(source)
            checkpoint.discard_after(self.checkpoint_dir, "best", self.env_step)
            truncate_csv(self.run_dir / "evaluations.csv", self.env_step)
            _truncate_jsonl(self.run_dir / "resets.jsonl", self.env_step)
        else:
            (self.run_dir / "evaluations.csv").write_text(",".join(EVALUATION_COLUMNS) + "\n")
            (self.run_dir / "resets.jsonl").write_text("")
        self._logger = Logger(self.run_dir, self.env_step if source else None)
        if not saved:  # indented, so that TensorBoard's Markdown shows it as it is
            self._logger.text("config", textwrap.indent((self.run_dir / "config.yaml").read_text(), "    "))
        label = self.run_dir.name if self.config.num_agents > 1 else ""
        self._progress = Progress(self.config.total_steps, self.env_step, agent.update_step, label)
        self._handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return obs

    def save(self, agent: Any, replay: Any, env: Any, generator: Any) -> None:
        """Write a checkpoint from which the run goes on bit for bit, unless this step has one already."""
        if self._saved_at == self.env_step:
            return
        self.check_finite(agent)
        self._saved_at = self.env_step
        parts = {
            "agent": agent.state_dict(),
            "replay": replay.state_dict(),
            "env": env.state_dict(),
            "run": {**self._state_dict(), "replay_generator": generator.get_state()},
        }
        self._logger.flush()
        checkpoint.save(self.checkpoint_dir, "step", self.env_step, parts, self.config.checkpoint.keep)

    def save_if_due(self, agent: Any, replay: Any, env: Any, generator: Any) -> None:
        if self._checkpoint_due.due(self.env_step):
            self.save(agent, replay, env, generator)

    def save_best(self, agent: Any) -> None:
        """Keep the agent alone as the best so far."""
        checkpoint.save(self.checkpoint_dir, "best", self.env_step, {"agent": agent.state_dict()}, keep=1)

    def close(self) -> None:
        """Close the logs and give the signals back."""
        if self._logger is not None:
            self._logger.close()
            self._progress.close()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def say_what_lies_ahead(self, device: Any, replay_bytes: int) -> None:
        """Print where the run writes, from which step it goes on, and whether its resets will ever happen."""
        total = self.config.total_steps
        self.say(
            f"run folder {self.run_dir}, from env step {self.env_step:,} of {total:,}, on {device}, "
            f"replay {replay_bytes / 1e6:,.0f} MB"
        )
        if self.config.reset.strategy != "none" and self.tracker is None and not self.resets_possible:
            self.say(
                "warning: no reset will happen: neither reset.every nor reset.at falls before total_steps"
            )

    def say(self, message: str) -> None:
        """Print a line without disturbing the progress bar."""
        self._progress.say(message)

    def _request_stop(self, number: int, frame: Any) -> None:
        if self.stop_requested:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nstopping after this step (again: at once, without saving)", file=sys.stderr)

    def _schedule_states(self) -> dict[str, Any]:
        return {
            "ratio": self._ratio,
            "log": self._log_due,
            "metrics": self._metrics_due,
            "evaluation": self._evaluation_due,
            "checkpoint": self._checkpoint_due,
            "reset_every": self._reset_every,
            "reset_at": self._reset_at,
            "trigger": self.trigger,
        }

    def _state_dict(self) -> dict[str, Any]:
        return {
            "env_step": self.env_step,
            "owed": self._owed,
            "num_resets": self.num_resets,
            "best_return": self.best_return,
            "last_evaluation": self.last_evaluation,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "losses": {name: float(value) for name, value in self._losses.items()},
            "seconds": self.seconds,
            "recycled": dict(self._recycled),
            "tracker": None if self.tracker is None else self.tracker.state_dict(),
            "schedules": {name: schedule.state_dict() for name, schedule in self._schedule_states().items()},
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("env_step", "num_resets", "last_evaluation"):
            setattr(self, name, state[name])
        self._owed = state.get("owed", 0)  # checkpoints older than act_lag owe nothing
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._losses = dict(state["losses"])
        self._seconds_before = state["seconds"]
        self._ratio.load_state_dict(state["schedules"]["ratio"])

    def _load_own_state(self, state: Mapping[str, Any], device: Any) -> None:
        """Continue what belongs to this run alone: its best score, its schedules, its tracker on ``device``."""
        self.best_return = state["best_return"]
        self._recycled.update(state["recycled"])
        if self.tracker is not None:
            self.tracker.load_state_dict(state["tracker"], device)
        for name, schedule in self._schedule_states().items():
            schedule.load_state_dict(state["schedules"][name])

    def _begin_branch(self, source: Path) -> None:
        """Copy the history of the run that holds checkpoint ``source`` and set this run's schedules beside it."""
        for name in HISTORY:
            shutil.copyfile(source.resolve().parents[1] / name, self.run_dir / name)
        for schedule in (self._log_due, self._metrics_due, self._evaluation_due, self._checkpoint_due):
            schedule.due(self.env_step)
        for schedule in (self._reset_every, self._reset_at):
            schedule.due(self.env_step - self.config.env.num_envs)


def _truncate_jsonl(path: Path, last_step: int) -> None:
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(line for line in lines if json.loads(line)["env_step"] <= last_step))
