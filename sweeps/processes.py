"""Processes of a sweep: each ends with the sweep, saving first, and none hears the terminal's Ctrl-C."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from configs.errors import ConfigError

TRAIN = Path(__file__).parent.parent / "train.py"
LAST_LINES = 8
# train.py's code for "stopped and saved", and what it dies of before it can save.
STOPPED = (130, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)
_PR_SET_PDEATHSIG = 1


class Process:
    """Process: one ``train.py`` at work, its output appended to a log.

    Args:
        argv: words behind ``train.py``.
        log: file; its folder exists.
        threads: for PyTorch, where neither the run's ``num_threads`` nor the environment says how many.
        pass_fds: descriptors that stay open in it, such as those of locks.
    """

    def __init__(self, argv: Sequence[str], log: Path, threads: int, pass_fds: Collection[int] = ()) -> None:
        self.log = log
        self._asked_to_stop = False
        command = [sys.executable, str(TRAIN), *argv]
        try:
            with log.open("ab") as file:
                self._begin = file.tell()
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=_environment(threads),
                    start_new_session=True,
                    pass_fds=tuple(pass_fds),
                    preexec_fn=_end_with_parent(os.getpid()),
                )
        except OSError as error:
            raise ConfigError(
                f"cannot start {log.stem}: {error.filename or log}: {error.strerror}"
            ) from error

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        """Return the exit code; None while it is at work."""
        return self._child.poll()

    def stop(self) -> None:
        """Ask it, once, to save and end."""
        if not self._asked_to_stop and self.poll() is None:
            self._asked_to_stop = True
            self._child.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            self._child.kill()

    def wait(self) -> int:
        return self._child.wait()

    def last_lines(self) -> list[str]:
        """Return what it printed last."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._begin, size - 8_192))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]


def _environment(threads: int) -> Mapping[str, str]:
    """Return the environment with that many threads unless it says how many itself."""
    share = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Output goes to a file, which should show at once what was printed.
    return {**share, "PYTHONUNBUFFERED": "1", **os.environ}


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what a child calls first, so that Linux sends it SIGTERM, at which it saves, when the sweep dies."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (
        OSError,
        AttributeError,
        TypeError,
    ):  # another system: the lock on the run's folder is what is left
        return None

    def ask_for_it() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask_for_it
