"""What a person sees while a run goes on: a bar on a terminal, otherwise one line per interval."""

from __future__ import annotations

import contextlib
import sys
import time

from tqdm import tqdm


class Progress:
    """Counts speed since the last report.

    Args:
        total_steps: env steps of the run.
        env_step: env steps done before this session.
        update_step: gradient updates done before this session.
        label: put in front of every line, to tell runs of one program apart.
    """

    def __init__(self, total_steps: int, env_step: int, update_step: int, label: str = "") -> None:
        self._label = f"{label}  " if label else ""
        self._total = total_steps
        self._first_step = env_step
        self._start = time.perf_counter()
        self._last = (self._start, env_step, update_step)
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=env_step,
                desc=label or None,
                unit=" steps",
                dynamic_ncols=True,
                smoothing=0.1,
            )

    @property
    def seconds(self) -> float:
        """Seconds since this session began."""
        return time.perf_counter() - self._start

    @property
    def has_bar(self) -> bool:
        """Whether there is a bar to ``advance``: on a terminal."""
        return self._bar is not None

    def advance(self, steps: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def speed(self, env_step: int, update_step: int) -> dict[str, float]:
        """Return env steps and updates per second since the previous call, all work in between included."""
        now = time.perf_counter()
        then, last_env_step, last_update_step = self._last
        self._last = (now, env_step, update_step)
        elapsed = max(now - then, 1e-9)
        return {
            "time/fps": (env_step - last_env_step) / elapsed,
            "time/updates_per_second": (update_step - last_update_step) / elapsed,
            "time/time_elapsed": self.seconds,
        }

    def report(self, env_step: int, mean_return: float | None, last_evaluation: float | None) -> None:
        """Show the present state of the run."""
        shown = {
            "return": "-" if mean_return is None else f"{mean_return:.1f}",
            "eval": "-" if last_evaluation is None else f"{last_evaluation:.1f}",
        }
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            return
        rate = (env_step - self._first_step) / max(self.seconds, 1e-9)
        left = tqdm.format_interval((self._total - env_step) / rate) if rate else "?"
        share = 100.0 * env_step / self._total
        _print(
            f"{self._label}step {env_step:>9,}/{self._total:,} ({share:3.0f} %)  return {shown['return']:>8}  "
            f"eval {shown['eval']:>8}  {rate:7.1f} steps/s  left {left}"
        )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            _print(self._label + message)
        else:
            with contextlib.suppress(OSError):
                tqdm.write(self._label + message)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _print(line: str) -> None:
    """Print a line; a reader who is gone (``| head``, a closed terminal) must not end the run."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
