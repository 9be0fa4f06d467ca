"""What TensorBoard shows beside single curves: the custom-scalars dashboard, the table of hyperparameters, resets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from configs import loader
from configs.schema import Config
from configs.values import Value

# Final scores in the table of hyperparameters: TensorBoard shows each run's newest value.
SCORES = ("eval/mean_reward", "rollout/ep_rew_mean")
# The table shows five options until one chooses others.
FIRST_COLUMNS = ("algo", "env.id", "preset", "reset.name", "seed")
# Options that are no columns there: they do not change what is learned.
_NO_COLUMNS = (
    *("log", "eval", "checkpoint", "device", "num_threads", "num_agents", "profile", "cuda_graphs", "logger"),
    *("compile", "precision", "branch_from", "env.atari", "reset.trigger"),
)
_KEPT = ("policy_kl", "action_mse", "greedy_agreement", "value_correlation", "feature_cka", "relative_sfe")


class Chart(NamedTuple):
    """Chart: a place in the dashboard.

    Attributes:
        category: heading under which it stands.
        title: of the chart.
        keys: logged keys, each line a regular expression for whole keys; of an interval mean, lower and upper end.
        is_interval: whether to draw a line with a band.
    """

    category: str
    title: str
    keys: tuple[str, ...]
    is_interval: bool = False


# At most six lines a chart: TensorBoard gives all lines of a run one colour.
CHARTS = (
    Chart("learning", "return of training episodes", ("rollout/ep_rew_mean",)),
    Chart(
        "learning",
        "return of evaluations, 95 % interval",
        ("eval/mean_reward", "eval_interval/low_95", "eval_interval/high_95"),
        is_interval=True,
    ),
    Chart("learning", "share of successes", ("eval/success_rate",)),
    Chart("learning", "human-normalised score", ("eval/human_normalized_score",)),
    Chart("learning", "critic loss", ("train/(critic_)?loss",)),
    Chart("learning", "actor loss", ("train/actor_loss",)),
    Chart("learning", "mean Q-value", ("train/q_mean",)),
    Chart("learning", "growth of the mean Q-value's size in 1,000 env steps", ("train/q_slope",)),
    Chart("plasticity", "deviation from isometry, at any scale", ("plasticity/[^/]+/dfi_any_scale",)),
    Chart("plasticity", "share of dormant units", ("plasticity/[^/]+/dormant_ratio",)),
    Chart("plasticity", "rank of the features (srank)", ("plasticity/[^/]+/srank",)),
    Chart("plasticity", "norm of the weights", ("plasticity/[^/]+/weight_norm",)),
    Chart("plasticity", "norm of the features", ("plasticity/[^/]+/feature_norm",)),
    Chart("plasticity", "norm of the gradient", ("plasticity/[^/]+/gradient_norm",)),
    Chart("plasticity", "trainability: loss after 100 updates", ("plasticity/[^/]+/trainability_loss",)),
    Chart("resets", "squared change of the weights (relative SFE)", ("reset/[^/]+/relative_sfe",)),
    Chart(
        "resets", "deviation from isometry before and after", ("reset/[^/]+/dfi_any_scale_(before|after)",)
    ),
    Chart("resets", "policy: KL of before from after", ("reset/[^/]+/policy_kl",)),
    Chart("resets", "policy: mean squared change of actions", ("reset/[^/]+/action_mse",)),
    Chart("resets", "policy: share of equal greedy actions", ("reset/[^/]+/greedy_agreement",)),
    Chart("resets", "values and features kept", ("reset/[^/]+/(value_correlation|feature_cka)",)),
    Chart("resets", "units recycled", ("reset/[^/]+/recycled_units",)),
    Chart("tasks", "mean return of each task", ("tasks/return_whole",)),
    Chart("tasks", "steps to half of the best", ("tasks/steps_to_half_best",)),
    Chart("tasks", "return on the task before", ("tasks/return_on_previous",)),
)


def layout(logged: Collection[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the dashboard for SummaryWriter.add_custom_scalars: charts by title, by category.

    Args:
        logged: keys so far; a chart without data has no place.
    """
    categories: dict[str, dict[str, list[Any]]] = {}
    for chart in CHARTS:
        if not all(any(re.fullmatch(key, each) for each in logged) for key in chart.keys):
            continue
        # TensorBoard matches the beginning of a tag.
        tags = list(chart.keys) if chart.is_interval else [f"{key}$" for key in chart.keys]
        kind = "Margin" if chart.is_interval else "Multiline"
        categories.setdefault(chart.category, {})[chart.title] = [kind, tags]
    return categories


def hyperparameters(config: Config) -> dict[str, str | float]:
    """Return the options that change what is learned, as numbers and words."""
    columns: dict[str, str | float] = {}
    left_out = _NO_COLUMNS if config.env.change.period else (*_NO_COLUMNS, "env.change")
    for path, value in loader.flatten_config(config).items():
        if any(path == prefix or path.startswith(prefix + ".") for prefix in left_out):
            continue
        columns[path] = (
            value if isinstance(value, int | float) and not isinstance(value, bool) else _word(value)
        )
    return columns


def _word(value: Value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def reset_text(env_step: int, index: int, record: Mapping[str, Any]) -> str:
    """Return a Markdown mark for a reset, from its record in ``resets.jsonl``: what it was, what it kept."""
    before, after = record["before"], record["after"]
    lines = [
        f"**Reset {index}** at env step {env_step:,}: {record['reset']} ({record['reason']})",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    names = {"mean_return": "evaluation, mean return"}
    for network in record["kept"]:
        names |= {
            f"plasticity/{network}/{metric}": f"{network}: {metric}"
            for metric in ("dfi_any_scale", "dormant_ratio", "srank")
        }
    lines += [
        f"| {name} | {before[key]:.4g} | {after[key]:.4g} |"
        for key, name in names.items()
        if key in before and key in after
    ]
    report = record["report"]
    kept = [
        f"| {network}: {figure} | {report[key]:.4g} |"
        for network in record["kept"]
        for figure in _KEPT
        if (key := f"reset/{network}/{figure}") in report
    ]
    return "\n".join([*lines, "", "| what it kept | |", "|---|---|", *kept] if kept else lines)
