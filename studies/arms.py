"""Arm: one method of a study, named like a reset's YAML in ``configs/reset/``, with options of its own if need be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from configs.errors import ConfigError
from configs.loader import load
from fire.resets.registry import Reset, make_reset

# How papers call them. ``full`` draws a new network at every border, which with a new optimizer is the cold start.
TITLES = {
    "none": "warm start",
    "full": "full reset (cold start)",
    "shrink_perturb": "S&P",
    "dash": "DASH",
    "redo": "ReDo",
    "cbp": "CBP",
    "snr": "SNR",
    "l2_init": "L2 Init",
    "parseval": "Parseval",
    "fire_paper": "FIRE",
    "fire": "FIRE, fresh norms",
    "random_orthogonal": "random isometry",
    "optimizer_only": "optimizer only",
    "plasticity_injection": "plasticity injection",
}

# Whose options an arm's are read as: an algorithm without weight decay, so that an arm that sets it is noticed.
AGENT = ("--algo", "dqn", "--env", "CartPole-v1")


@dataclass(frozen=True)
class Arm:
    """A method under study.

    Attributes:
        spec: as typed, ``name``, ``name@border`` or ``name:option=value,option=value``.
        reset: what happens at a border between chunks, or after every update.
        l2_init, parseval: strengths of the two loss terms.
        ewc: strength of elastic weight consolidation, see :mod:`studies.ewc`; 0: none.
        borders: the borders, counted from 1, at which the reset happens; empty: at all.
    """

    spec: str
    reset: Reset
    l2_init: float = 0.0
    parseval: float = 0.0
    borders: tuple[int, ...] = ()
    ewc: float = 0.0

    @property
    def title(self) -> str:
        """Name for tables and figures."""
        where, colon, options = self.spec.partition(":")
        name, _, _ = where.partition("@")
        title = "FIRE" if name == "fire" and "scale=" in options else TITLES.get(name, name)
        if self.borders:
            title += f" at border {', '.join(map(str, self.borders))} only"
        return f"{title}, {options.replace(',', ', ').replace('+', ' ')}" if colon else title

    def resets_at(self, border: int) -> bool:
        """Whether the reset happens before chunk ``border``."""
        return not self.borders or border in self.borders


def parse_arm(spec: str) -> Arm:
    """Return the arm that ``spec`` names, read as ``--reset`` of a training run is.

    ``fire_paper:method=newton_schulz,num_iters=5``: the reset's YAML name, then options of the reset; several values of
    one option are joined by ``+``. An option with a dot is one of a training run: ``parseval:agent.parseval=1e-3``.
    ``fire_paper@1+3`` resets at the first and third border only, ``fire_paper:ewc=100`` also remembers by EWC.

    Raises:
        ConfigError: an unknown name or option, a value that does not fit.
    """
    where, _, options = spec.partition(":")
    name, at, numbers = where.partition("@")
    borders = numbers.split("+") if at else []
    if not all(number.isdecimal() and int(number) > 0 for number in borders):
        raise ConfigError(f"arm {spec!r}: borders are numbers from 1, joined by +, got {numbers!r}")
    own, ewc = [], 0.0
    for pair in filter(None, options.split(",")):
        key, _, value = pair.partition("=")
        if key == "ewc":
            ewc = _strength(spec, value)
        else:
            own.append(pair)
    try:
        config, _ = load([*AGENT, "--reset", f"{name}:{','.join(own)}" if own else name])
    except ConfigError as error:
        raise ConfigError(f"arm {spec!r}: {error}") from error
    known = replace(
        load([*AGENT, "--reset", "none"])[0].agent,
        l2_init=config.agent.l2_init,
        parseval=config.agent.parseval,
    )
    if config.agent != known:
        raise ConfigError(
            f"arm {spec!r} sets options of an RL agent; of those a study has agent.l2_init and agent.parseval"
        )
    reset = make_reset(config.reset.strategy, config.reset.options)
    return Arm(spec, reset, config.agent.l2_init, config.agent.parseval, tuple(map(int, borders)), ewc)


def _strength(spec: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"arm {spec!r}: ewc must be a number of at least 0, got {text!r}")
    return value
