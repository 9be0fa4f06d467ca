"""What runs on a machine of a cluster: one attempt at a program, behind locks that hold between machines.

Ray (``sweeps.cluster``) and Slurm (``sweeps.slurm``) both end here. All nodes see the same files under the same paths.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.files import UNSUPPORTED
from sweeps.processes import STOPPED, Process

ROOT = Path(__file__).parent.parent
POLL_SECONDS = 0.2
CLAIM_SECONDS = 5.0  # between two looks at a folder that another process still trains in
_CLAIMED = "another process is training in"  # training.folder.Claim


class Attempt:
    """Attempt: ``train.py`` on this node, until it ends or ``stop`` is called, from a signal handler too.

    Args:
        argv: words behind ``train.py``.
        log: file.
        locks: files of which one process in the cluster may have each; ``train.py`` holds them too, until its end.
        threads: see ``Process``.
        home: folder to which relative paths are.
        asked: looked at all the time; once it is true, that is a ``stop``.

    Attributes:
        stopped: whether ``stop`` was called.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: str,
        locks: Sequence[str],
        threads: int,
        home: str,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stopped = False
        self._argv = list(argv)
        self._log = Path(log)
        self._locks = [Path(path) for path in locks]
        self._threads = threads
        self._home = home
        self._asked = asked
        self._process: Process | None = None

    def run(self) -> tuple[int, list[str]]:
        """Return the exit code and the last lines."""
        os.chdir(self._home)
        # The node of an earlier attempt may have been given up while its train.py is alive, and may even end well.
        with contextlib.ExitStack() as held:
            descriptors = [held.enter_context(self._locked(path)) for path in self._locks]
            while not self._is_over():
                self._process = Process(self._argv, self._log, self._threads, descriptors)
                code, lines = self._watch(self._process)
                if self.stopped or not (code and lines and _CLAIMED in lines[-1]):
                    return code, lines
                _sleep(CLAIM_SECONDS, self._is_over)
        return STOPPED[0], []

    def stop(self) -> None:
        """Let ``train.py`` save and end, or never begin."""
        self.stopped = True

    def stop_now(self) -> None:
        """``stop``, and wait until it has saved."""
        self.stop()
        if self._process is not None:
            self._process.stop()
            self._process.wait()

    def _is_over(self) -> bool:
        if not self.stopped and self._asked():
            self.stop()
        return self.stopped

    def _watch(self, process: Process) -> tuple[int, list[str]]:
        while (code := process.poll()) is None:
            if self._is_over():
                process.stop()
            time.sleep(POLL_SECONDS)
        return code, process.last_lines()

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[int]:
        """Yield a descriptor of ``path``, locked, as soon as nobody else has it or the attempt is over.

        Unlike the lock on a run's folder (``training.folder.Claim``) one on a file that is open for writing holds
        between the clients of a network file system. Where locks are not supported there is none.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not self._is_over():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    _sleep(CLAIM_SECONDS, self._is_over)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    break
            yield descriptor
        finally:
            os.close(descriptor)


def _sleep(seconds: float, over: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not over():
        time.sleep(POLL_SECONDS)
