"""Adapter to the official HumanoidBench package, for comparisons: ids ``humanoid_bench:h1-walk-v0`` and so on.

The package (github.com/carlosferrazza/humanoid-bench, not on PyPI) pins mujoco 3.1.6, gymnasium 0.29.1 and more. Its
flat tasks run on current versions once three things are set right here, without touching its files:

* it imports a converter of JAX policies although only its hierarchical tasks use that;
* its named indexing asks MuJoCo for fields that newer versions no longer have;
* it registers ids such as ``h1-walk-v0``, which are ours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import EnvError

PREFIX = "humanoid_bench:"
NAMESPACE = "humanoid_bench/"  # Gymnasium's spelling
INSTALL = (
    "git clone https://github.com/carlosferrazza/humanoid-bench && pip install --no-deps dm_control==1.0.43 "
    "&& pip install --no-deps -e humanoid-bench"
)
_POLICY_CONVERTER = "humanoid_bench.mjx.flax_to_torch"


def resolve_official(env_id: str) -> str:
    """Return the registered id for ``humanoid_bench:<id>``.

    Raises:
        EnvError: the package cannot be imported, or has no such id.
    """
    name = env_id.removeprefix(PREFIX)
    registered = register_official(name)
    if NAMESPACE + name not in registered:
        raise EnvError(
            f"humanoid_bench has no environment {name!r}, but for example h1-walk-v0, h1hand-push-v0"
        )
    return NAMESPACE + name


def register_official(wanted: str) -> frozenset[str]:
    """Import the package once and register what it offers; return the ids. ``wanted`` goes into the message."""
    if importlib.util.find_spec("humanoid_bench") is None:
        native = f"; the native id is {wanted!r}" if wanted in gym.registry else ""
        raise EnvError(f"the package humanoid_bench is not installed{native}; to install it: {INSTALL}")
    return _register()


@functools.cache
def _register() -> frozenset[str]:
    ours = dict(gym.registry)
    gym.registry.clear()
    try:
        offered = _import()
    finally:
        gym.registry.clear()
        gym.registry.update(ours)
    for spec in offered:
        gym.register(
            id=NAMESPACE + spec.id,
            entry_point="envs.official:make_official",
            max_episode_steps=spec.max_episode_steps,
            kwargs=dict(spec.kwargs),
        )
    return frozenset(NAMESPACE + spec.id for spec in offered)


def _import() -> list[gym.envs.registration.EnvSpec]:
    """Import the package into an empty registry; return what it registered."""
    if importlib.util.find_spec("jax") is None:
        # The package imports names that need jax at module level; its flat tasks never use them.
        unused = types.ModuleType(_POLICY_CONVERTER)
        unused.__dict__.update(TorchModel=None, TorchPolicy=None)
        sys.modules.setdefault(_POLICY_CONVERTER, unused)
    try:
        importlib.import_module("humanoid_bench")
    except ImportError as error:
        raise EnvError(f"humanoid_bench cannot be imported: {error}; to install it: {INSTALL}") from error
    import mujoco  # which other environments do not need

    sizes = importlib.import_module("humanoid_bench.dmc_deps.dmc_sizes").array_sizes
    for struct, owner in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        sizes[struct] = {field: size for field, size in sizes[struct].items() if hasattr(owner, field)}
    return list(gym.registry.values())


class _Modern(gym.Wrapper):
    """What the original does in ways that do not fit: its randomness, and how it calls Gymnasium's renderer."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset; NumPy's global generator, from which the original draws, is seeded for it and put back."""
        if seed is None:
            return self.env.reset(seed=seed, options=options)
        state = np.random.get_state()
        np.random.seed(seed % 2**32)
        try:
            return self.env.reset(seed=seed, options=options)
        finally:
            np.random.set_state(state)

    def render(self) -> np.ndarray | None:
        """Draw with the renderer's current signature, without the original's marker of the target."""
        original: Any = self.unwrapped
        return original.mujoco_renderer.render(self.render_mode)


def make_official(render_mode: str | None = None, **kwargs: Any) -> gym.Env:
    """Build an official environment; unlike the original, a renderer is made only for a render mode.

    Raises:
        EnvError: the package lacks a file of this environment.
    """
    environment = importlib.import_module("humanoid_bench.env").HumanoidEnv
    try:
        return _Modern(environment(render_mode=render_mode, **kwargs))
    except (OSError, ValueError) as error:  # from MuJoCo, whose message names the file
        wanted = "-".join(str(kwargs.get(key)) for key in ("robot", "task"))
        raise EnvError(f"humanoid_bench cannot build {wanted}: {' '.join(str(error).split())}") from error
