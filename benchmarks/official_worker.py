"""Steps official HumanoidBench environments for ``benchmarks/envs.py`` in an interpreter of its own, such as one with
the versions the package pins. Needs nothing of this suite.

    python benchmarks/official_worker.py PATH TASK NUM_ENVS

Writes one line of JSON with its versions, then answers every block of NumPy arrays on its standard input (qpos, qvel
and warm start of the N environments, actions (steps, N, 19); ``numpy.save`` format) with a line of JSON: the CPU and
wall seconds it took to step them.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import time
import types

import numpy as np


def read(stream: io.BufferedReader) -> np.ndarray:
    """Return the next array: its length in bytes as a little-endian uint64, then ``numpy.save``'s bytes."""
    (length,) = struct.unpack("<Q", stream.read(8))
    return np.load(io.BytesIO(stream.read(length)))


def write(stream: io.BufferedWriter, array: np.ndarray) -> None:
    """Write an array as ``read`` expects it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    stream.write(struct.pack("<Q", buffer.tell()) + buffer.getvalue())


def main(path: str, task: str, num_envs: int) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints must not mix with the answers
    # Imported at module level for hierarchical tasks only; it needs torch and jax.
    converter = types.ModuleType("humanoid_bench.mjx.flax_to_torch")
    converter.TorchModel = converter.TorchPolicy = None
    sys.modules[converter.__name__] = converter
    sys.path.insert(0, path)
    import gymnasium
    import humanoid_bench  # noqa: F401  (registers the environments)
    import mujoco

    envs = [
        gymnasium.make(f"h1-{task}-v0", render_mode=None, disable_env_checker=True).unwrapped
        for _ in range(num_envs)
    ]
    for env in envs:
        env.reset(seed=0)
    versions = {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
    print(json.dumps(versions), file=answers)
    while sys.stdin.buffer.peek(1):
        states = [read(sys.stdin.buffer) for _ in range(3)]
        actions = read(sys.stdin.buffer)
        for index, env in enumerate(envs):
            for field, values in zip(("qpos", "qvel", "qacc_warmstart"), states):  # noqa: B905  (Python 3.8 too)
                getattr(env.data, field)[:] = values[index]
        cpu, wall = time.process_time(), time.perf_counter()
        for batch in actions:
            for env, action in zip(envs, batch):  # noqa: B905
                env.step(action)
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
