"""What a run writes and prints: TensorBoard, ``scalars.csv``, ``evaluations.csv``, ``resets.jsonl``, lines."""

from __future__ import annotations

import collections
import csv
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.files import sync, to_json
from common.stats import slope
from common.video import Clip
from configs.schema import Config
from envs import human_normalized_score, success_score
from envs.vec import Episode
from training.dashboard import hyperparameters, reset_text
from training.evaluation import Evaluation
from training.folder import HISTORY, HISTORY_OF_TASKS
from training.logger import Logger, truncate
from training.mirrors import open_mirror
from training.progress import Progress
from training.summary import reset_line, task_line
from training.tasks import TASK_COLUMNS, TaskTally

RETURN_WINDOW = 100  # finished episodes averaged in rollout/ep_rew_mean, Stable-Baselines3's number
SLOPE_WINDOW = 10  # log intervals over which the growth of Q-values is measured
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


class Record:
    """Record: the written history of one run, and what a person sees of it.

    Args:
        config: of the run.
        run_dir: existing folder with ``config.yaml``.
        resume_step: env step from which the run goes on: what was written later is dropped. None: it begins.
        update_step: gradient updates made so far.
        branch_of: folder of the run whose history up to ``resume_step`` this one shares and has yet to copy, or None.
        lines: of each file of the history when the checkpoint was saved, where it says so.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        resume_step: int | None,
        update_step: int,
        branch_of: Path | None = None,
        lines: Mapping[str, int] | None = None,
    ) -> None:
        self._config = config
        self.run_dir = run_dir
        self.last_evaluation: float | None = None
        self._returns: collections.deque[float] = collections.deque(maxlen=RETURN_WINDOW)
        self._lengths: collections.deque[int] = collections.deque(maxlen=RETURN_WINDOW)
        self._q: collections.deque[tuple[int, float]] = collections.deque(maxlen=SLOPE_WINDOW)
        self._seconds_before = 0.0  # of earlier sessions of a resumed run
        period = config.env.change.period
        self._tally = TaskTally(period) if period else None
        self._history = HISTORY_OF_TASKS if period else HISTORY
        if branch_of is not None:
            for name in self._history:
                shutil.copyfile(branch_of / name, run_dir / name)
        if resume_step is None:
            (run_dir / "evaluations.csv").write_text(",".join(EVALUATION_COLUMNS) + "\n")
            (run_dir / "resets.jsonl").write_text("")
            if self._tally is not None:
                (run_dir / "tasks.csv").write_text(",".join(TASK_COLUMNS) + "\n")
        else:
            for name in self._history:
                truncate(run_dir / name, resume_step, (lines or {}).get(name))
        begins = resume_step is None or branch_of is not None
        mirror = open_mirror(config, run_dir, begins)
        self._logger = Logger(run_dir, resume_step, mirror)
        if begins:
            # Indented, so that TensorBoard's Markdown shows it as it is.
            self._logger.text("config", textwrap.indent((run_dir / "config.yaml").read_text(), "    "))
            self._logger.hyperparameters(hyperparameters(config))
        label = run_dir.name if config.num_agents > 1 else ""
        self.progress = Progress(config.total_steps, resume_step or 0, update_step, label)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, those before an interruption included."""
        return self._seconds_before + self.progress.seconds

    def episode(self, episode: Episode, env_step: int) -> None:
        """Take note of a training episode that ended with transition ``env_step``."""
        self._returns.append(episode.episodic_return)
        self._lengths.append(episode.length)
        if self._tally is not None:
            self._tally.episode(episode.episodic_return, env_step)

    def scalars(self, values: Mapping[str, float], env_step: int) -> None:
        self._logger.scalars(values, env_step)

    def histograms(self, values: Mapping[str, Tensor], env_step: int) -> None:
        self._logger.histograms(values, env_step)

    def clip(self, clip: Clip, when: str, env_step: int) -> None:
        """Write a filmed episode, to TensorBoard alone; for ``when`` see ``evaluation``."""
        self._logger.clip(f"video/{when}", clip, env_step)

    def interval(self, values: Mapping[str, float], env_step: int, update_step: int) -> None:
        """Write the scalars of a log interval: ``values``, episodes, speed; print where the run stands."""
        rollout = {}
        if self._returns:
            rollout["rollout/ep_rew_mean"] = sum(self._returns) / len(self._returns)
            rollout["rollout/ep_len_mean"] = sum(self._lengths) / len(self._lengths)
        if "train/q_mean" in values:
            self._q.append((env_step, abs(values["train/q_mean"])))
            if len(self._q) > 1:
                rollout["train/q_slope"] = 1000 * slope(self._q)
        speed = self.progress.speed(env_step, update_step)
        frames = env_step * self._config.env.action_repeat
        counts = {"time/total_timesteps": env_step, "time/frames": frames}
        self.scalars({**values, **rollout, **speed, **counts}, env_step)
        self.flush()
        self.progress.report(env_step, rollout.get("rollout/ep_rew_mean"), self.last_evaluation)

    def evaluation(self, result: Evaluation, when: str, env_step: int) -> None:
        """Write an evaluation.

        Args:
            result: its returns and lengths.
            when: ``periodic``, ``before_reset``, ``after_reset`` or ``random_policy``; the last goes into
                ``evaluations.csv`` alone.
            env_step: of the training.
        """
        low, high = result.interval
        row = (result.mean, result.stderr, low, high, result.mean_length)
        with (self.run_dir / "evaluations.csv").open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                [env_step, when, *map(repr, row), len(result.returns)]
            )
        if when == "random_policy":
            return
        scalars = {"eval/mean_reward": result.mean, "eval/mean_ep_length": result.mean_length}
        if len(result.returns) > 1:
            interval = {"eval_interval/low_95": low, "eval_interval/high_95": high}
            scalars |= {"eval/stderr_reward": result.stderr, **interval}
        task = self._config.env.change.task_trained(env_step)
        if self._tally is not None:
            scalars["eval/task"] = task
        env_id = self._config.env.task_id(task)
        if (bar := success_score(env_id)) is not None:
            scalars["eval/success_rate"] = result.success_rate(bar)
        if (normalized := human_normalized_score(env_id, result.mean)) is not None:
            scalars["eval/human_normalized_score"] = normalized
        self.scalars(scalars, env_step)
        self.last_evaluation = result.mean

    def reset(self, values: Mapping[str, Any], env_step: int, index: int) -> None:
        """Append reset number ``index`` with what was seen before and after it to ``resets.jsonl``; mark, print it."""
        with (self.run_dir / "resets.jsonl").open("a") as file:
            file.write(to_json({"env_step": env_step, "index": index, **values}) + "\n")
        self._q.clear()  # values from before say nothing about how they grow from now on
        self._logger.text("resets", reset_text(env_step, index, values), env_step)
        self.say(reset_line(env_step, index, values))

    def task(self, env_step: int, return_on_previous: float | None) -> None:
        """Write what became of the task that ends at ``env_step``, and print it.

        Args:
            env_step: of the training.
            return_on_previous: mean return of an evaluation on the task before it, if there was one.
        """
        assert self._tally is not None
        task = self._config.env.change.task_trained(env_step)
        figures = {**self._tally.finish(), "return_on_previous": return_on_previous}
        with (self.run_dir / "tasks.csv").open("a", newline="") as file:
            shown = ("" if value is None else repr(value) for value in figures.values())
            csv.writer(file, lineterminator="\n").writerow([env_step, task, *shown])
        known = {f"tasks/{name}": value for name, value in figures.items() if value is not None}
        self.scalars({"tasks/task": task, **known}, env_step)
        self.say(task_line(env_step, task, figures))

    def say(self, message: str) -> None:
        """Print a line without disturbing the progress bar."""
        self.progress.say(message)

    def flush(self) -> None:
        self._logger.flush()

    def close(self) -> None:
        self._logger.close()
        self.progress.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state; the history is on disk by then, as a checkpoint must not outlast what led to it."""
        self.flush()
        for name in HISTORY:
            sync(self.run_dir / name)
        sync(self.run_dir)
        return {
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "q": list(self._q),
            "last_evaluation": self.last_evaluation,
            "seconds": self.seconds,
            "tally": None if self._tally is None else self._tally.state_dict(),
            "lines": {name: (self.run_dir / name).read_bytes().count(b"\n") for name in self._history},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._q.extend(tuple(point) for point in state.get("q", ()))
        self.last_evaluation = state["last_evaluation"]
        self._seconds_before = state["seconds"]
        if self._tally is not None:
            self._tally.load_state_dict(state["tally"])
