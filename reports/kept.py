"""What a reset kept and what it gave back, read from its record in ``resets.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reports.panels import Panel

Record = Mapping[str, Any]


class Quantity(NamedTuple):
    """One number of a reset and a network.

    Attributes:
        words: for axes and tables.
        of: reads it from a record for a network; None where it was not measured.
        log: whether its axis is logarithmic.
    """

    words: str
    of: Callable[[Record, str], float | None]
    log: bool = False


@dataclass(frozen=True)
class KeptRow:
    """Means over all resets of a method, by key of ``QUANTITIES``; what nobody measured is not there."""

    panel: Panel
    method: str
    network: str
    resets: int
    means: Mapping[str, float]


def _reported(name: str) -> Callable[[Record, str], float | None]:
    return lambda record, network: record["report"].get(f"reset/{network}/{name}")


def _kept(name: str) -> Callable[[Record, str], float | None]:
    return lambda record, network: record.get("kept", {}).get(network, {}).get(name)


def _metric(name: str, sign: int) -> Callable[[Record, str], float | None]:
    """Return the change of a plasticity metric, before minus after times ``sign``."""

    def of(record: Record, network: str) -> float | None:
        key = f"plasticity/{network}/{name}"
        before, after = record.get("before", {}).get(key), record.get("after", {}).get(key)
        return None if before is None or after is None else sign * (before - after)

    return of


def _return_change(record: Record, network: str) -> float | None:
    before, after = (record.get(when, {}).get("mean_return") for when in ("before", "after"))
    return None if before is None or after is None else after - before


QUANTITIES = {
    "greedy_agreement": Quantity("greedy actions kept (share)", _kept("greedy_agreement")),
    "policy_kl": Quantity("KL of the policy (nats)", _kept("policy_kl"), log=True),
    "action_mse": Quantity("squared change of actions", _kept("action_mse"), log=True),
    "value_correlation": Quantity("correlation of values", _kept("value_correlation")),
    "feature_cka": Quantity("CKA of features", _kept("feature_cka")),
    "sfe": Quantity("relative SFE (0: all weights kept)", _reported("relative_sfe")),
    "return": Quantity("return, after minus before", _return_change),
    "dfi": Quantity("DfI after, any scale (0: isometry)", _reported("dfi_any_scale_after"), log=True),
    "dormant": Quantity("dormant share given back", _metric("dormant_ratio", 1)),
    "srank": Quantity("srank gained", _metric("srank", -1)),
    "trainability": Quantity("fall of the trainability loss", _metric("trainability_loss", 1)),
}
KEPT = ("greedy_agreement", "policy_kl", "action_mse", "value_correlation", "feature_cka", "sfe", "return")
GIVEN_BACK = ("dfi", "dormant", "trainability")


def networks_of(panel: Panel) -> list[str]:
    """Return the networks that any reset of the panel reports on."""
    keys = [key for run in panel.runs for record in run.resets for key in record["report"]]
    return list(dict.fromkeys(key.split("/")[1] for key in keys if key.endswith("/relative_sfe")))


def planes(panel: Panel, network: str) -> list[tuple[str, str]]:
    """Return what can be drawn against what: weights moved against isometry, the policy kept against the rest."""
    records = [record for run in panel.runs for record in run.resets]

    def known(keys: Sequence[str]) -> list[str]:
        return [
            key for key in keys if any(QUANTITIES[key].of(record, network) is not None for record in records)
        ]

    kept, back = known(KEPT), known(GIVEN_BACK)
    first = [("sfe", "dfi")] if "sfe" in kept and "dfi" in back else []
    return [*first, *((kept[0], key) for key in back if key != "dfi" and kept)]


def kept_rows(panel: Panel) -> list[KeptRow]:
    """Return the means of every quantity for each method that was reset and each network."""
    rows = []
    for method, runs in panel.methods.items():
        records = [record for run in runs for record in run.resets]
        for network in networks_of(panel):
            found = {key: [quantity.of(r, network) for r in records] for key, quantity in QUANTITIES.items()}
            known = {key: [v for v in values if v is not None] for key, values in found.items()}
            means = {key: float(np.mean(values)) for key, values in known.items() if values}
            if means:
                rows.append(KeptRow(panel, method, network, len(records), means))
    return rows


def measured(rows: Sequence[KeptRow]) -> list[str]:
    """Return the quantities that any of the rows has, in the order of ``QUANTITIES``."""
    return [key for key in QUANTITIES if any(not math.isnan(row.means.get(key, math.nan)) for row in rows)]
