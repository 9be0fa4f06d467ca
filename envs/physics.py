"""Physical quantities of an environment, multiplied by factors: in a compiled MuJoCo model, or in attributes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

MUJOCO_QUANTITIES = ("gravity", "friction", "strength", "mass")

# Of Gymnasium's environments without MuJoCo, by class: the attributes that hold a quantity. An actuator's force is
# that which an action stands for; bounds of the action space are no force.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "CartPoleEnv": {
        "gravity": ("gravity",),
        "strength": ("force_mag",),
        "mass": ("masscart", "masspole"),
        "length": ("length",),
    },
    "PendulumEnv": {"gravity": ("g",), "mass": ("m",), "length": ("l",)},
    "AcrobotEnv": {
        "mass": ("LINK_MASS_1", "LINK_MASS_2"),
        "length": ("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_COM_POS_1", "LINK_COM_POS_2"),
    },
    "MountainCarEnv": {"gravity": ("gravity",), "strength": ("force",)},
    "Continuous_MountainCarEnv": {"strength": ("power",)},
}


def quantities_of(env: gym.Env) -> tuple[str, ...]:
    """Return what ``scale_env`` can change in ``env``, fields of ``PhysicsConfig``."""
    inner = env.unwrapped
    if _model_of(inner) is not None:
        return MUJOCO_QUANTITIES
    return tuple(ATTRIBUTES.get(type(inner).__name__, ()))


def nominal_of(env: gym.Env) -> Any:
    """Return the physics of ``env`` as it was built, for ``scale_env``."""
    inner: Any = env.unwrapped
    if (model := _model_of(inner)) is not None:
        return copy.copy(model)
    names = {name for each in ATTRIBUTES.get(type(inner).__name__, {}).values() for name in each}
    return {name: getattr(inner, name) for name in names}


def scale_env(env: gym.Env, nominal: Any, factors: Mapping[str, float]) -> None:
    """Give ``env`` its ``nominal`` physics times ``factors``, by quantity; a reset must follow."""
    inner: Any = env.unwrapped
    if (model := _model_of(inner)) is not None:
        scale_model(model, nominal, factors)
        return
    for quantity, names in ATTRIBUTES[type(inner).__name__].items():
        for name in names:
            setattr(inner, name, nominal[name] * factors[quantity])
    if type(inner).__name__ == "CartPoleEnv":  # which computes these once
        inner.total_mass = inner.masspole + inner.masscart
        inner.polemass_length = inner.masspole * inner.length


def scale_model(model: Any, nominal: Any, factors: Mapping[str, float]) -> None:
    """Write ``nominal``'s quantities times ``factors`` into the compiled ``model``, a copy of it.

    The friction of a contact is the larger one of two bodies, so that of all is multiplied. An actuator's force is
    gain * control + bias: both are, and the limits of the force.
    """
    import mujoco

    strength, mass, friction = factors["strength"], factors["mass"], factors["friction"]
    model.opt.gravity[:] = nominal.opt.gravity * factors["gravity"]
    model.geom_friction[:] = nominal.geom_friction * friction
    model.pair_friction[:] = nominal.pair_friction * friction
    model.actuator_gainprm[:] = nominal.actuator_gainprm * strength
    model.actuator_biasprm[:] = nominal.actuator_biasprm * strength
    model.actuator_forcerange[:] = nominal.actuator_forcerange * strength
    model.body_mass[:] = nominal.body_mass * mass
    model.body_inertia[:] = nominal.body_inertia * mass
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what depends on masses


def _model_of(inner: Any) -> Any:
    """Return the MuJoCo model of an unwrapped environment; None without one."""
    model = getattr(inner, "model", None)
    return model if type(model).__name__ == "MjModel" else None
