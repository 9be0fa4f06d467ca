"""Programs of a sweep on the machines of a Ray cluster: one task each, tried again elsewhere when its node dies.

Ray decides where a task runs; the queue decides which runs there are, and train.py what is left of one. All nodes see
the same files under the same paths: code, environment and run folders. docs/cluster.md says what that asks of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from sweeps.nodes import POLL_SECONDS, ROOT, Attempt
from sweeps.processes import STOPPED

LOCAL = "local"
# Lost nodes and stops from outside that one program survives.
RETRIES = 20
ROOM_SECONDS = 5.0  # between two looks at how large the cluster is


class StoppedFromOutsideError(RuntimeError):
    """A program that was ended, though not by its sweep: a node that shuts down. Worth another try, which resumes."""


@dataclass(frozen=True)
class Share:
    """Share: what of a node each program has to itself.

    Attributes:
        cpus: cores, which are its threads too.
        gpus: graphics cards, or a part of one; 0: it sees none.
    """

    cpus: int = 1
    gpus: float = 0.0

    def fit_into(self, resources: dict[str, float]) -> int:
        """Return how many programs a node of these Ray resources holds at a time, memory apart."""
        number = int(resources.get("CPU", 0) // self.cpus)
        if not self.gpus:
            return number
        cards = int(resources.get("GPU", 0))
        # The smallest share that Ray knows is 0.0001; 1 // 0.1 is 9.
        on_cards = cards // int(self.gpus) if self.gpus >= 1 else cards * int(1 / self.gpus + 1e-6)
        return min(number, on_cards)


class Cluster:
    """Cluster: a connection to Ray, until ``close``.

    Args:
        address: ``host:port`` of the head node, ``auto`` for the cluster to which this machine belongs, or ``local``
            for one of this machine alone, which ends with the connection.
        share: of each program.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, share: Share) -> None:
        self._ray = _import_ray()
        self.share = share
        if "://" in address:
            raise ConfigError(f"--ray {address}: give host:port, auto or local, on a machine of the cluster")
        try:
            self._ray.init(**_arguments(address))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().splitlines()[:1]
            raise ConfigError(f"--ray {address}: no connection to Ray: {''.join(first)}") from error
        self._task = self._ray.remote(_train)
        self._room, self._looked = 0, -ROOM_SECONDS

    def close(self) -> None:
        """Leave the cluster; one that is local ends."""
        self._ray.shutdown()

    @property
    def threads(self) -> int:
        """Of each program."""
        return self.share.cpus

    def batch(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which programs are started at once; Ray takes them one by one."""
        return contextlib.nullcontext()

    def room(self) -> int:
        """Return how many programs the nodes alive hold at a time, memory apart; looked up every few seconds."""
        if time.monotonic() >= self._looked + ROOM_SECONDS:
            self._looked = time.monotonic()
            self._room = sum(self.share.fit_into(node["Resources"]) for node in self._nodes())
        return self._room

    def require_fit(self, name: str, memory: int) -> None:
        """Raise ConfigError if no node could ever hold a program that takes ``memory`` bytes.

        Ray would let it wait for ever.
        """
        nodes = [node["Resources"] for node in self._nodes()]
        if any(self.share.fit_into(node) and node.get("memory", 0) >= memory for node in nodes):
            return
        asked = f"{self.share.cpus} cores, {self.share.gpus:g} GPUs and {memory / 1e9:.1f} GB"
        there = "; ".join(
            f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / 1e9:.1f} GB"
            for node in nodes
        )
        raise ConfigError(
            f"{name} needs {asked}; no node of the cluster has that much: {there or 'no nodes'}"
        )

    def start(self, argv: Sequence[str], log: Path, locks: Sequence[Path], memory: int) -> Task:
        """Hand a program to Ray, which starts it as soon as a node has room for it.

        Args:
            argv: words behind ``train.py``.
            log: file on storage that all nodes see; its folder exists.
            locks: a file for each run, beside the log.
            memory: bytes.
        """
        options = {
            "num_cpus": self.share.cpus,
            "num_gpus": self.share.gpus,
            "memory": memory,
            "name": log.stem,
            "max_retries": RETRIES,
            "retry_exceptions": [StoppedFromOutsideError],
        }
        reference = self._task.options(**options).remote(
            list(argv), str(log), [str(path) for path in locks], self.share.cpus, str(Path.cwd())
        )
        return Task(self._ray, reference)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]


class Task:
    """Task: a program that Ray has been given; to the queue it is what ``sweeps.processes.Process`` is."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference
        self._asked_to_stop = False
        self._code: int | None = None
        self._lines: list[str] = []

    def poll(self) -> int | None:
        """Return the exit code; None while it waits or is at work."""
        if self._code is None and self._ray.wait([self._reference], timeout=0)[0]:
            self._code, self._lines = self._result()
        return self._code

    def stop(self) -> None:
        """Ask it, once, to save and end; one that waits for a node never starts."""
        if not self._asked_to_stop and self.poll() is None:
            self._asked_to_stop = True
            self._ray.cancel(self._reference)

    def kill(self) -> None:
        """End Ray's worker at once; Linux still asks train.py to save."""
        if self.poll() is None:
            self._ray.cancel(self._reference, force=True)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def last_lines(self) -> list[str]:
        """Return what it printed last, or what Ray says of it."""
        return self._lines

    def _result(self) -> tuple[int, list[str]]:
        errors = self._ray.exceptions
        try:
            code, lines = self._ray.get(self._reference)
            return code, lines
        except errors.TaskCancelledError:
            return STOPPED[0], []
        except errors.RayError as error:
            if self._asked_to_stop:  # its node went while it was being stopped
                return STOPPED[0], []
            cause = getattr(error, "cause", None) or error
            words = " ".join(str(cause).split())
            return 1, [f"Ray gave up after {RETRIES} retries: {type(cause).__name__}: {words[:300]}"]


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray needs Ray: pip install -r requirements-ray.txt") from error
    return ray


def _arguments(address: str) -> dict[str, Any]:
    # PYTHONPATH: Ray pickles a function of a module by its name. The other: without it a worker that dies takes
    # train.py with it by SIGKILL; with it train.py hears SIGTERM, and saves.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, "RAY_kill_child_processes_on_worker_exit": "0"}
    arguments: dict[str, Any] = {
        "address": address,
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if address == LOCAL:  # heard by this machine alone
        arguments |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    return arguments


# On the nodes


def _train(
    argv: Sequence[str], log: str, locks: Sequence[str], threads: int, home: str
) -> tuple[int, list[str]]:
    """Run ``train.py`` on this node to its end; return its exit code and last lines. See ``Attempt`` for arguments.

    Raises:
        StoppedFromOutsideError: something other than the sweep has ended it.
    """
    attempt = Attempt(argv, log, locks, threads, home)
    # What ray.cancel raises here, perhaps several times.
    before = signal.signal(signal.SIGINT, lambda *_: attempt.stop())
    try:
        code, lines = attempt.run()
    finally:
        signal.signal(signal.SIGINT, before)
    if code in STOPPED and not attempt.stopped:
        raise StoppedFromOutsideError(f"train.py ended with code {code}")
    return code, lines
