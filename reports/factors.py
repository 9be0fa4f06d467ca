"""Factors: what varies between runs, found by comparing their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Which options speak for the others that they bring along, and what they are called.
NAMES = {"algo": "algo", "env.id": "env", "reset.name": "reset", "preset": "preset"}
# Where, how long and how watched a run is: not what is compared.
IGNORED = (
    "seed",
    "num_agents",
    "num_threads",
    "device",
    "branch_from",
    "profile",
    "logger",
    "cuda_graphs",
    "compile",
    "env.atari.num_threads",
)
IGNORED_SECTIONS = ("log", "checkpoint")


def factors_of(configs: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """Return the factors of each run, and what varies along with them though it need not.

    An option that a factor already chosen decides is none itself: ``reset.strategy`` follows from the reset's name.
    Where an option outside ``reset`` follows the reset like this, a comparison of resets is one of that option as well,
    which is said.

    Args:
        configs: options by dotted path.

    Returns:
        for each run its factors, name to value as text; and a sentence for each confounded option.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    varying = [key for key in keys if len({_text(config, key) for config in configs}) > 1]
    varying = [key for key in varying if key not in IGNORED and key.partition(".")[0] not in IGNORED_SECTIONS]
    candidates = [key for key in NAMES if key in varying] + [key for key in varying if key not in NAMES]
    chosen: list[str] = []
    confounded: list[str] = []
    for key in candidates:
        if not _follows(key, chosen, configs):
            chosen.append(key)
        elif _is_confounded(key, chosen, configs):
            confounded.append(f"{key} varies along with the reset")
    factors = [{NAMES.get(key, key): _text(config, key) for key in chosen} for config in configs]
    return factors, confounded


def _follows(key: str, chosen: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the chosen options decide the value of ``key`` in all these runs."""
    decided: dict[tuple[str, ...], str] = {}
    for config in configs:
        group = tuple(_text(config, other) for other in chosen)
        if decided.setdefault(group, _text(config, key)) != _text(config, key):
            return False
    return True


def _is_confounded(key: str, chosen: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ``key``, outside the reset's own options, is decided by the reset and by nothing else."""
    others = [other for other in chosen if other != "reset.name"]
    return "reset.name" in chosen and not key.startswith("reset.") and not _follows(key, others, configs)


def _text(config: Mapping[str, Any], key: str) -> str:
    return show(config.get(key, ""))


def show(value: object) -> str:
    """Return a factor's value as text: lists joined, booleans and null as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return " ".join(map(show, value)) if isinstance(value, list | tuple) else str(value)
