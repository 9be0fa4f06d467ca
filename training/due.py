"""What is due when: the clock that the runs of a program share, and the schedules of each run.

An ordinary step asks a run nothing but whether its ``next_step`` is reached.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

from common.schedules import At, Every
from configs.schema import Config
from fire.triggers import Trigger


class UnknownMetric(ValueError):
    """The trigger's metric is none that this run measures."""


class Clock:
    """Clock: env steps taken and gradient updates owed, the same for all runs of one program.

    Args:
        config: of any of the runs.

    Attributes:
        env_step: transitions that each run has collected.
    """

    def __init__(self, config: Config) -> None:
        self.env_step = 0
        self._total_steps = config.total_steps
        self._learning_starts = config.replay.learning_starts
        self._ratio = config.replay.replay_ratio
        self._transitions = 0  # collected since the warm-up, which brings no updates due
        self._updates = 0  # handed out

    def advance(self, transitions: int) -> None:
        """Count ``transitions`` more in each run."""
        self.env_step += transitions
        if self.env_step >= self._learning_starts:
            self._transitions += transitions

    @property
    def owed(self) -> int:
        """Gradient updates due and not yet made: ``floor(ratio * n)`` after ``n`` transitions, less those made."""
        # The small term undoes the rounding of ratios such as 0.1 that float64 cannot hold.
        return math.floor(self._ratio * self._transitions + 1e-9 * max(1.0, self._ratio)) - self._updates

    def take_owed(self) -> int:
        """Hand out the updates owed."""
        owed = self.owed
        self._updates += owed
        return owed

    @property
    def warming_up(self) -> bool:
        """Whether actions are random and no updates are made yet."""
        return self.env_step < self._learning_starts

    @property
    def has_learned(self) -> bool:
        """Whether any update has been made."""
        return self._updates > 0

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.env_step >= self._total_steps

    def state_dict(self) -> dict[str, int]:
        return {"env_step": self.env_step, "transitions": self._transitions, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.env_step, self._transitions = int(state["env_step"]), int(state["transitions"])
        self._updates = int(state["updates"])


class Due:
    """Due: the schedules and the reset trigger of one run.

    The questions are asked in the order in which the methods stand here, each once at a step where something is due.

    Args:
        config: of the run.
        clock: of its program.
        has_reset_points: whether its strategy resets on schedule; those that act after every update, or never, do not.

    Attributes:
        next_step: the first env step at which anything can be due.
        num_resets: resets so far.
    """

    def __init__(self, config: Config, clock: Clock, has_reset_points: bool) -> None:
        self._clock = clock
        self._options = config.reset
        self._total_steps = config.total_steps
        self._transitions = config.env.num_envs  # of one step
        self._has_reset_points = has_reset_points
        self._trigger = Trigger(config.reset.trigger)
        self._trigger_reason: str | None = None  # until a reset is asked for
        self._evaluated_at = -1
        self.num_resets = 0
        self._log = Every(config.log.every)
        self._metrics = Every(config.log.metrics_every)
        self._reset_every = Every(config.reset.every if has_reset_points else 0, config.reset.until)
        self._reset_at = At(config.reset.at if has_reset_points else ())
        change = config.env.change.period
        self._reset_on_change = Every(change if has_reset_points and config.reset.on_change else 0)
        self._change = Every(change)
        self._evaluation = Every(config.eval.every)
        self._checkpoint = Every(config.checkpoint.every)
        self._checkpoint_at = At(config.checkpoint.at)
        self._checkpoint_asked = 0  # env step
        self.look_ahead()

    def look_ahead(self) -> None:
        """Find the ``next_step``, after everything that was due is done."""
        self.next_step = min(self._total_steps, *(schedule.next_step for schedule in self._schedules))

    @property
    def left_over(self) -> bool:
        """Whether something that is due at this step has been put off."""
        step, finished = self._clock.env_step, self._clock.finished
        # A reset at the very end waits for the run to be made longer.
        waiting = () if finished else (self._reset_every, self._reset_at, self._reset_on_change)
        schedules = (self._log, self._metrics, *waiting, self._evaluation, self._change, *self._checkpoints)
        unasked = any(each.next_step <= step for each in schedules)
        triggered = self._trigger_reason is not None and not finished
        return unasked or triggered or (finished and self._evaluated_at != step)

    @property
    def resets_possible(self) -> bool:
        """Whether any reset can happen before the end."""
        reset, last = self._options, self._total_steps - 1
        every = 0 < reset.every <= min(last, last if reset.until is None else reset.until)
        at_borders = reset.on_change and 0 < self._change.period <= last
        return self._has_reset_points and (
            every
            or at_borders
            or any(step <= last for step in reset.at)
            or bool(self._options.trigger.metric)
        )

    def log(self) -> bool:
        """Whether to write rollout, time and train scalars."""
        return self._log.due(self._clock.env_step)

    def metrics(self) -> bool:
        """Whether to measure plasticity; not before the first update."""
        return self._metrics.due(self._clock.env_step) and self._clock.has_learned

    def take_metrics(self, metrics: Mapping[str, float]) -> None:
        """Let the trigger see a measurement made on the metrics' own period.

        Raises:
            UnknownMetric: the trigger waits for a metric that is not measured.
        """
        wanted = self._options.trigger.metric
        if wanted and not fnmatch.filter(metrics, wanted):
            near = difflib.get_close_matches(wanted, metrics, n=1, cutoff=0.0)[0]
            raise UnknownMetric(
                f"reset.trigger.metric {wanted}: no such metric is measured; did you mean {near}?"
            )
        if self._has_reset_points and self._clock.env_step >= self._options.warmup:
            self._trigger_reason = self._trigger.update(self._clock.env_step, metrics)

    def reset(self) -> str | None:
        """Return why the networks are to be reset now (``change``, ``every``, ``at``, the trigger's words), or None."""
        step = self._clock.env_step
        if self._clock.finished:  # nothing could be learned from it, unless the run is made longer
            return None
        # Each must be asked, or what two of them share would leave one due again at the next step.
        every, at = self._reset_every.due(step), self._reset_at.due(step)
        change = self._reset_on_change.due(step)
        triggered, self._trigger_reason = self._trigger_reason, None
        # Before the first update there is nothing to reset.
        if not self._clock.has_learned or step < self._options.warmup:
            return None
        reasons = {"change": change, "every": every, "at": at}
        return next((reason for reason, holds in reasons.items() if holds), triggered)

    def evaluation(self) -> bool:
        """Whether to evaluate; not if a reset at this very step has just been evaluated."""
        due = self._evaluation.due(self._clock.env_step) or self._clock.finished
        return due and self._evaluated_at != self._clock.env_step

    def change(self) -> bool:
        """Whether a task is over."""
        return self._change.due(self._clock.env_step)

    def checkpoint(self) -> bool:
        """Whether to save."""
        step = self._checkpoint_asked = self._clock.env_step
        every, at = self._checkpoint.due(step), self._checkpoint_at.due(step)
        return every or at

    def note_evaluation(self) -> None:
        """Take note that this step is evaluated."""
        self._evaluated_at = self._clock.env_step

    def note_reset(self) -> None:
        """Count a reset at this step."""
        self.num_resets += 1
        self._trigger.note_reset(self._clock.env_step)

    def begin_branch(self, state: Mapping[str, Any]) -> None:
        """Set the schedules of a run that starts at another's checkpoint, given that one's ``state_dict``.

        Its reset points include that very step. Its resets are counted from the other's on: what they draw depends on
        their number, and a branch with the same options is to be the run that went on.
        """
        self.num_resets = int(state["num_resets"])
        step = self._clock.env_step
        for schedule in (self._log, self._metrics, self._evaluation, self._change, *self._checkpoints):
            schedule.due(step)
        for reset in (self._reset_every, self._reset_at, self._reset_on_change):
            reset.due(step - self._transitions)
        self._checkpoint_asked = step
        self.look_ahead()

    @property
    def _checkpoints(self) -> tuple[Every, At]:
        return self._checkpoint, self._checkpoint_at

    @property
    def _schedules(self) -> list[Every | At]:
        changes = (self._reset_on_change, self._change)
        resets = (self._reset_every, self._reset_at)
        periodic = (self._log, self._metrics, *resets, self._evaluation, self._checkpoint)
        return [*periodic, *changes, self._checkpoint_at]

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_resets": self.num_resets,
            # Which steps checkpoint.at names may change, so that a number of them would say nothing.
            "schedules": [schedule.state_dict() for schedule in self._schedules[:-1]],
            "checkpoint_asked": self._checkpoint_asked,
            "trigger": self._trigger.state_dict(),
            "trigger_reason": self._trigger_reason,
            "evaluated_at": self._evaluated_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_resets = int(state["num_resets"])
        # Runs saved before tasks could change have fewer.
        for schedule, saved in zip(self._schedules[:-1], state["schedules"], strict=False):
            schedule.load_state_dict(saved)
        self._checkpoint_asked = int(state.get("checkpoint_asked", self._clock.env_step))
        self._checkpoint_at = At(self._checkpoint_at.steps)
        self._checkpoint_at.due(self._checkpoint_asked)
        self._trigger.load_state_dict(state["trigger"])
        # Runs saved before these were part of the state had put nothing off.
        self._trigger_reason = state.get("trigger_reason")
        self._evaluated_at = int(state.get("evaluated_at", self._clock.env_step))
        self.look_ahead()
