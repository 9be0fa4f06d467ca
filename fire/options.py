"""The options of every reset strategy, without PyTorch: the command line can list them before it is imported.

``OPTIONS`` has the names of ``fire.resets.registry.REGISTRY``; each strategy there holds an instance of its entry here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from .fields import option

SCALES = ("paper", "unit", "mean_singular_value", "preserve_norm", "fresh_norm")
METHODS = ("polar", "newton_schulz", "muon")
NULL_POLICIES = ("random", "zero", "error")
CONV_FORMS = ("slices", "flatten", "group_slices", "group_flatten")
ROLES = ("input", "hidden", "head")
OUTER_LAYERS = ("project", "match_outputs", "redraw", "keep")


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ValueError unless ``value`` lies in [low, high], or (low, high] with ``open_low``."""
    if not (low < value <= high if open_low else low <= value <= high):
        raise ValueError(f"{name} must lie in {'(' if open_low else '['}{low}, {high}], got {value}")


def check_roles(roles: Sequence[str]) -> None:
    """Raise ValueError unless ``roles`` are some of ``ROLES``."""
    if not roles:
        raise ValueError(f"roles is empty, so nothing would change; choose from {', '.join(ROLES)}")
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"roles {role!r} is not one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class ResetOptions:
    """What every strategy asks."""

    optimizer: str = option(
        "zero",
        "optimizer state of the reset network: zero it in place (moments and step count), rebuild it (drop it, so that "
        "the next update starts it anew; any optimizer, but CUDA graphs are recorded anew), or keep it",
        choices=("zero", "rebuild", "keep"),
    )
    target: str = option(
        "sync",
        "target network: copy the reset network into it, or keep it as it is",
        choices=("sync", "keep"),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            choices, value = each.metadata.get("choices"), getattr(self, each.name)
            if choices is not None and value not in choices:
                raise ValueError(f"{each.name} {value!r} is not one of {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class NoResetOptions(ResetOptions):
    optimizer: str = option("keep", "optimizer state: keep it", choices=("keep",))
    target: str = option("keep", "target network: keep it", choices=("keep",))


@dataclass(frozen=True)
class OptimizerResetOptions(ResetOptions):
    optimizer: str = option(
        "zero",
        "optimizer state: zero it in place (moments and step count), or rebuild it",
        choices=("zero", "rebuild"),
    )
    target: str = option(
        "keep", "target network: keep it, or copy the network into it", choices=("keep", "sync")
    )


@dataclass(frozen=True)
class LayerwiseOptions(ResetOptions):
    """Strategies that give each parameter a rule by what the parameter is."""

    target: str = option(
        "sync",
        "target network: copy the reset network into it, give its own weights the same treatment (with the same new "
        "weights), or keep it as it is",
        choices=("sync", "same", "keep"),
    )


@dataclass(frozen=True)
class SourceOptions(ResetOptions):
    """Strategies that need new weights."""

    source: str = option(
        "redraw",
        "where new weights come from: drawn anew, or the run's first weights",
        choices=("redraw", "rewind"),
    )


@dataclass(frozen=True)
class FullOptions(LayerwiseOptions, SourceOptions):
    """New weights for everything."""


@dataclass(frozen=True)
class ShrinkPerturbOptions(FullOptions):
    shrink_factor: float = option(
        0.2, "share of the old weights that is kept (0.2: FIRE's RL scripts; 0.8 in SR-SPR)", unit="0..1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("shrink_factor", self.shrink_factor, 0, 1)


@dataclass(frozen=True)
class IsometryOptions(LayerwiseOptions, SourceOptions):
    """Strategies that turn weights into scaled isometries."""

    scale: str = option("paper", "singular value of the result, see docs/resets.md", choices=SCALES)
    conv_form: str = option(
        "slices",
        "a convolution's weight: one matrix for each kernel position, as published, or flattened to (out, in * kernel);"
        " with group_ in front each group of a grouped convolution on its own",
        choices=CONV_FORMS,
    )
    roles: tuple[str, ...] = option(ROLES, f"which layers are changed, out of {', '.join(ROLES)}")
    include: tuple[str, ...] = option(
        (), "of those the layers to change, by shell patterns of their names such as *.to_q; empty: all"
    )
    parts: tuple[int, ...] = option(
        (), "matrices of fused projections to change, counted from 0 (query, key, value: 0 1 2); empty: all"
    )
    tied: str = option(
        "keep",
        "an output layer whose weight is the embedding too: keep it, or change it as the output layer (FIRE's language "
        "scripts)",
        choices=("keep", "change"),
    )
    biases: str = option(
        "keep",
        "biases of the layers that are changed: keep them, set them to zero, take new ones, or rescale: multiply those "
        "of all layers by the changes of the weights' norms up to there, see docs/resets.md",
        choices=("keep", "zero", "redraw", "rescale"),
    )

    input_layer: str = option(
        "project",
        "the first weight layer: projected like all others; projected and then multiplied so that its outputs keep "
        "their root mean square on the probe batch (match_outputs); drawn anew; or kept",
        choices=OUTER_LAYERS,
    )
    head: str = option("project", "the output layers: the same choices", choices=OUTER_LAYERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_roles(self.roles)
        if any(part < 0 for part in self.parts):
            raise ValueError(f"parts are counted from 0, got {min(self.parts)}")
        for name, role in (("input_layer", "input"), ("head", "head")):
            choice = getattr(self, name)
            if choice in ("match_outputs", "redraw") and role not in self.roles:
                raise ValueError(
                    f"{name} {choice!r} changes a layer that roles {', '.join(self.roles)} leave out"
                )
            if choice == "match_outputs" and self.target == "same":
                raise ValueError(
                    f"{name} 'match_outputs' looks at the network's outputs, not its target's; use target sync or keep"
                )

    def outer_layer(self, role: str) -> str:
        """What happens to layers of ``role``, one of ``OUTER_LAYERS``."""
        if role not in self.roles:
            return "keep"
        return {"input": self.input_layer, "head": self.head}.get(role, "project")


@dataclass(frozen=True)
class FireOptions(IsometryOptions):
    strength: float = option(1.0, "how far singular values move towards the scale; 1 is FIRE", unit="0..1")
    method: str = option("polar", "exact polar factor, or an approximating iteration", choices=METHODS)
    num_iters: int = option(10, "steps of newton_schulz or muon; polar ignores it", unit="steps")
    null: str = option(
        "random",
        "directions the weight does not have: completed at random, left zero, or an error",
        choices=NULL_POLICIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strength", self.strength, 0, 1, open_low=True)
        if self.num_iters < 1:
            raise ValueError(f"num_iters must be at least 1, got {self.num_iters}")


@dataclass(frozen=True)
class FireDqnOptions(FireOptions):
    """FIRE on convolutions, new linear layers."""


@dataclass(frozen=True)
class SingularClipOptions(LayerwiseOptions):
    optimizer: str = option(
        "keep",
        "optimizer state: keep it (a clip may change little, and often), zero it or rebuild it",
        choices=("keep", "zero", "rebuild"),
    )
    min_singular_value: float = option(0.25, "smaller singular values are raised to this", minimum=0)
    max_singular_value: float = option(4.0, "larger singular values are lowered to this")
    conv_form: str = option(
        "flatten",
        "a convolution's weight: one matrix (out, in * kernel), or one for each kernel position (slices)",
        choices=CONV_FORMS,
    )
    roles: tuple[str, ...] = option(ROLES, f"which layers are changed, out of {', '.join(ROLES)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_roles(self.roles)
        check_range("min_singular_value", self.min_singular_value, 0, float("inf"))
        check_range("max_singular_value", self.max_singular_value, self.min_singular_value, float("inf"))


@dataclass(frozen=True)
class DashOptions(ResetOptions):
    min_shrink: float = option(
        0.3, "smallest factor, the paper's lambda (FIRE's vision scripts: 0.05 to 0.3)", unit="0..1"
    )
    alpha: float = option(
        0.3,
        "weight of the newest minibatch in the running gradient (FIRE's vision scripts: 0.1, 0.3)",
        "0..1",
    )
    num_batches: int = option(
        8, "minibatches of log.probe_size transitions; at alpha 0.3 the last 8 hold 94 % of the weight"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("min_shrink", self.min_shrink, 0, 1)
        check_range("alpha", self.alpha, 0, 1, open_low=True)
        check_range("num_batches", self.num_batches, 1, float("inf"))


@dataclass(frozen=True)
class PlasticityInjectionOptions(SourceOptions):
    head: str = option("", "name of the submodule to inject; empty: each output layer")


@dataclass(frozen=True)
class ReDoOptions(ResetOptions):
    optimizer: str = option(
        "keep",
        "optimizer state beyond the recycled units' moments, which are always zeroed: keep it, zero it or rebuild it",
        choices=("keep", "zero", "rebuild"),
    )
    target: str = option(
        "keep", "target network: keep it, or copy the network into it", choices=("keep", "sync")
    )
    dormancy_threshold: float = option(
        0.1, "the paper's tau: 0.025 in its default DQN, 0.1 elsewhere", unit="share of the layer's mean"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("dormancy_threshold", self.dormancy_threshold, 0, float("inf"))


@dataclass(frozen=True)
class TrackedOptions(ResetOptions):
    """Resets after every update: they zero the moments of units they recycle and touch nothing else beside weights."""

    optimizer: str = option(
        "keep", "optimizer state beyond the recycled units' moments: keep it", choices=("keep",)
    )
    target: str = option("keep", "target network: keep it", choices=("keep",))


@dataclass(frozen=True)
class ContinualBackpropOptions(TrackedOptions):
    replacement_rate: float = option(
        1e-4, "share of mature units recycled (FIRE's vision runs: 1e-4, 1e-5)", "1/update"
    )
    maturity: int = option(1000, "age from which a unit may be recycled (FIRE's vision runs)", "updates")
    decay: float = option(0.99, "decay of the utility, the paper's eta", "0..1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("replacement_rate", self.replacement_rate, 0, 1)
        check_range("decay", self.decay, 0, 1)
        check_range("maturity", self.maturity, 0, float("inf"))


@dataclass(frozen=True)
class SelfNormalizedOptions(TrackedOptions):
    percentile: float = option(0.98, "rejection percentile (FIRE's vision runs: 0.92 to 0.99)", "0..1")
    max_silence: int = option(
        20_000, "silence after which any unit is recycled (FIRE's vision runs)", "updates"
    )
    min_firings: int = option(100, "past intervals a unit needs before its percentile counts", "firings")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("percentile", self.percentile, 0, 1)
        check_range("max_silence", self.max_silence, 1, float("inf"))
        check_range("min_firings", self.min_firings, 1, float("inf"))


@dataclass(frozen=True)
class CalibratedPartialOptions(TrackedOptions):
    replacement_rate: float = option(0.015, "largest share of a unit's weights replaced at once", "0..1")
    sharpness: float = option(16.0, "slope of the sigmoid of the utility")
    threshold: float = option(
        1.0, "utility up to which the largest share is replaced", unit="share of the layer's mean"
    )
    decay: float = option(0.99, "decay of the running utility", "0..1")
    period: int = option(1000, "updates between partial resets", "updates")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("replacement_rate", self.replacement_rate, 0, 1)
        check_range("sharpness", self.sharpness, 0, float("inf"))
        check_range("decay", self.decay, 0, 1)
        check_range("period", self.period, 1, float("inf"))


@dataclass(frozen=True)
class WeightTrackingOptions(TrackedOptions):
    """What acts on whole weights after every update."""

    roles: tuple[str, ...] = option(ROLES, f"which layers are changed, out of {', '.join(ROLES)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_roles(self.roles)


@dataclass(frozen=True)
class OrthogonalDecoupledOptions(WeightTrackingOptions):
    strength: float = option(
        0.1, "lambda: the step on the deviation from isometry is the learning rate times this", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strength", self.strength, 0, float("inf"))


@dataclass(frozen=True)
class NormalizeProjectOptions(WeightTrackingOptions):
    roles: tuple[str, ...] = option(
        ("input", "hidden"), f"which layers are projected, out of {', '.join(ROLES)}: those before norms"
    )


OPTIONS: dict[str, type[ResetOptions]] = {
    "none": NoResetOptions,
    "optimizer_only": OptimizerResetOptions,
    "full": FullOptions,
    "shrink_perturb": ShrinkPerturbOptions,
    "sr_dqn": ShrinkPerturbOptions,
    "fire": FireOptions,
    "fire_dqn": FireDqnOptions,
    "random_orthogonal": IsometryOptions,
    "dash": DashOptions,
    "redo": ReDoOptions,
    "plasticity_injection": PlasticityInjectionOptions,
    "cbp": ContinualBackpropOptions,
    "snr": SelfNormalizedOptions,
    "singular_clip": SingularClipOptions,
    "calibrated_partial": CalibratedPartialOptions,
    "orthogonal_decoupled": OrthogonalDecoupledOptions,
    "normalize_project": NormalizeProjectOptions,
}
