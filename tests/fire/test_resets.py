"""Values of single resets, by hand."""

from __future__ import annotations

import pytest
import torch

from fire import fire_reference
from fire.network.scale import layer_scale
from fire.options import OPTIONS, SCALES
from fire.polar.isometry import dfi
from fire.resets.registry import REGISTRY, make_reset, reset_networks
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot, strategy


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def run(kind: str, reset, seed: int = 7):
    slot = make_slot(kind)
    before = parameters(slot.module)
    report = reset_networks({"net": slot}, reset, batch_for(kind), torch.Generator().manual_seed(seed))
    return slot, before, report


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_full_reset_redraws_or_rewinds(kind: str) -> None:
    slot, _, _ = run(kind, strategy("full"))
    expected = parameters(slot.build(torch.Generator().manual_seed(7)))
    for name, value in slot.module.named_parameters():
        assert torch.equal(value, expected[name])
    slot, _, _ = run(kind, strategy("full", source="rewind"))
    for name, value in slot.module.named_parameters():
        assert torch.equal(value, parameters(slot.initial())[name])


def test_full_reset_restores_running_statistics() -> None:
    slot, _, _ = run("conv", strategy("full"))
    assert torch.equal(slot.module[1].running_mean, torch.zeros(8))
    assert slot.module[1].num_batches_tracked == 0
    slot, _, _ = run("conv", strategy("fire"))
    assert slot.module[1].num_batches_tracked == 3


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_shrink_perturb_keeps_its_share(kind: str) -> None:
    slot, before, _ = run(kind, strategy("shrink_perturb", shrink_factor=0.8))
    fresh = parameters(slot.build(torch.Generator().manual_seed(7)))
    for name, value in slot.module.named_parameters():
        torch.testing.assert_close(value.detach(), 0.8 * before[name] + 0.2 * fresh[name])


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_fire_gives_every_matrix_the_papers_singular_value_and_keeps_the_rest(kind: str) -> None:
    slot, before, report = run(kind, strategy("fire"))
    weights = {id(layer.weight) for layer in slot.layers()}
    for layer in slot.layers():
        matrices = layer.matrices()
        kernel = layer.weight[0, 0].numel() if layer.kind == "conv" else 1
        scale = (matrices.shape[-2] / matrices.shape[-1]) ** 0.5 / kernel
        values = torch.linalg.svdvals(matrices.double())
        torch.testing.assert_close(values, torch.full_like(values, scale), rtol=2e-6, atol=0)
    for name, value in slot.module.named_parameters():
        assert id(value) in weights or torch.equal(value, before[name])
    for layer in report.layers:
        assert layer.dfi_scaled_after <= 1e-10 < layer.dfi_scaled_before
        assert layer.dfi_any_scale_after <= 1e-10
        name = f"{layer.layer}.weight"
        moved = (slot.module.get_parameter(name).detach().double() - before[name].double()).square().sum()
        assert layer.sfe == pytest.approx(float(moved), rel=1e-6)
        assert layer.relative_sfe == pytest.approx(
            float(moved / before[name].double().square().sum()), rel=1e-6
        )


def test_partial_fire_moves_singular_values_part_of_the_way() -> None:
    slot, before, _ = run("mlp", strategy("fire", strength=0.25, scale="unit"))
    for layer in slot.layers():
        old = torch.linalg.svdvals(before[f"{layer.name}.weight"].double())
        new = torch.linalg.svdvals(layer.weight.detach().double())
        torch.testing.assert_close(new, 0.75 * old + 0.25, rtol=1e-5, atol=1e-6)


def test_newton_schulz_is_a_different_intervention() -> None:
    slot, _, _ = run("mlp", strategy("fire", method="newton_schulz", num_iters=5, scale="unit"))
    assert float(dfi(slot.layers()[1].matrices())) > 1e-3


def test_a_target_treated_alike_gets_the_same_new_weights_whatever_stands_before_it() -> None:
    slots = {"actor": make_slot("mlp"), "critic": make_slot("twin")}
    slots["actor"].target = None
    old = {name: value.clone() for name, value in slots["critic"].target.named_parameters()}
    reset = strategy("shrink_perturb", shrink_factor=0.2, target="same")
    reset_networks(slots, reset, None, torch.Generator().manual_seed(3))
    module, target = (dict(m.named_parameters()) for m in (slots["critic"].module, slots["critic"].target))
    for name, value in target.items():
        fresh = (value - 0.2 * old[name]) / 0.8
        assert not torch.allclose(value, module[name])
        before = make_slot("twin").module.get_parameter(name)
        torch.testing.assert_close(module[name], 0.2 * before + 0.8 * fresh)


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 0.0},
        {"strength": 1.5},
        {"num_iters": 0},
        {"scale": "big"},
        {"roles": ("output",)},
        {"conv_form": "x"},
    ],
)
def test_fire_rejects_wrong_options(options: dict) -> None:
    with pytest.raises(ValueError):
        strategy("fire", **options)


def test_fire_on_flattened_convolutions_makes_the_whole_kernel_an_isometry() -> None:
    slot, before, report = run("conv", strategy("fire", conv_form="flatten"))
    for layer, change in zip(slot.layers("flatten"), report.layers, strict=True):
        expected = fire_reference(before[f"{layer.name}.weight"].flatten(1))
        torch.testing.assert_close(layer.weight.flatten(1).double(), expected, rtol=0, atol=1e-5)
        assert change.residual <= 1e-5 and change.dfi_scaled_after <= 1e-10


@pytest.mark.parametrize("reset", ["fire", "random_orthogonal"])
def test_isometries_only_where_the_role_is_asked_for_and_biases_as_asked(reset: str) -> None:
    for roles, changed in ((("hidden",), {"3"}), (("input", "head"), {"0", "5"})):
        slot, before, _ = run("mlp", strategy(reset, roles=roles, biases="zero"))
        for name, value in slot.module.named_parameters():
            layer, _, kind = name.partition(".")
            assert torch.equal(value, before[name]) == (layer not in changed)
            assert not (layer in changed and kind == "bias" and value.any())


def test_a_strategy_takes_its_own_options_alone() -> None:
    assert make_reset("fire", OPTIONS["fire"](strength=0.5)).options.strength == 0.5
    with pytest.raises(TypeError, match="reset full takes FullOptions, got FireOptions"):
        make_reset("full", OPTIONS["fire"]())
    with pytest.raises(ValueError, match="reset 'fires' is not one of none, optimizer_only, full"):
        make_reset("fires", OPTIONS["fire"]())


def test_defaults_are_those_of_the_options_and_ancestors_are_few() -> None:
    assert set(REGISTRY) == set(OPTIONS)
    for name, reset in REGISTRY.items():
        assert reset().options == OPTIONS[name]()
        assert len(reset.__mro__) <= 5


@pytest.mark.parametrize("scale", SCALES)
def test_fire_is_the_reference_formula(scale: str) -> None:
    for kind in ("mlp", "conv"):
        slot, before, _ = run(kind, strategy("fire", scale=scale))
        fresh = parameters(slot.build(torch.Generator().manual_seed(7)))
        for layer in slot.layers():
            name = f"{layer.name}.weight"
            expected = fire_reference(before[name], scale, fresh[name])
            torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": "unit"}, {"scale": "preserve_norm", "strength": 0.3}, {"strength": 0.7, "null": "zero"}],
)
def test_what_the_solver_knows_is_what_looking_at_the_weights_shows(kind: str, options: dict) -> None:
    def look(matrices: torch.Tensor, scale: torch.Tensor) -> dict[str, float]:
        values = torch.linalg.svdvals(matrices.double())
        scaled = ((values / scale[..., None]).square() - 1).square().sum(-1)
        # The deviation from the nearest of all multiples, a parabola in 1 / c^2, at its lowest point.
        anywhere = values.shape[-1] - (values.square().sum(-1).square() / values.pow(4).sum(-1)).nan_to_num(0)
        return {
            "dfi": float((values.square() - 1).square().sum()),
            "dfi_scaled": float(scaled.sum()),
            "condition": float((values[..., 0] / values[..., -1]).amax()),
            "dfi_any_scale": float(anywhere.sum()),
            "residual": float((anywhere / values.shape[-1]).amax().sqrt()),
        }

    slot = make_slot(kind)
    with torch.no_grad():
        slot.layers()[0].weight[..., 0] = 0  # lacks a direction, unless there are more inputs than outputs
    looked = {layer.name: (layer.matrices().clone(), layer_scale(layer)) for layer in slot.layers()}
    reset = strategy("fire", **options)
    report = reset_networks({"net": slot}, reset, batch_for(kind), torch.Generator())
    for change, layer in zip(report.layers, slot.layers(), strict=True):
        matrices, scale = looked[layer.name]
        before, after = look(matrices, scale), look(layer.matrices(), scale)
        close = {"rel": 2e-6, "abs": 1e-10}
        assert change.sfe == pytest.approx(
            float((matrices - layer.matrices()).double().square().sum()), **close
        )
        assert change.squared_norm == pytest.approx(float(matrices.double().square().sum()), rel=1e-9)
        assert change.dfi_before == pytest.approx(before["dfi"], rel=1e-9)
        assert change.dfi_scaled_before == pytest.approx(before["dfi_scaled"], rel=1e-9)
        assert change.dfi_any_scale_before == pytest.approx(before["dfi_any_scale"], rel=1e-9)
        assert change.dfi_any_scale_after == pytest.approx(after["dfi_any_scale"], **close)
        assert change.dfi_after == pytest.approx(after["dfi"], **close)
        assert change.dfi_scaled_after == pytest.approx(after["dfi_scaled"], **close)
        if change.condition_number < 1e12:
            assert change.condition_number == pytest.approx(before["condition"], rel=1e-6)
        else:
            assert (
                change.condition_number == float("inf") and not before["condition"] < 1e7
            )  # NaN: a zero matrix
        # A bound where rounding is all there is, the value itself where there is more.
        assert after["residual"] <= change.residual * (1 + 1e-6) <= after["residual"] * (1 + 1e-5) + 1e-6
