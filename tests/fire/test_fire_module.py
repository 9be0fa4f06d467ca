"""``fire_`` on every kind of module, and the properties FIRE is built on."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fire import fire_, fire_reference
from fire.polar.isometry import sfe
from tests.fire.fire_networks import BatchedLinear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def singular_values_are(matrices: Tensor, scale: float) -> None:
    values = torch.linalg.svdvals(matrices.detach().double())
    torch.testing.assert_close(values, torch.full_like(values, scale), rtol=5e-6, atol=0)


def test_each_kind_of_layer() -> None:
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(6, 4),
            "conv1d": nn.Conv1d(3, 5, 4),
            "conv2d": nn.Conv2d(3, 5, 2),
            "conv3d": nn.Conv3d(3, 5, 2),
            "grouped": nn.Conv2d(6, 4, 3, groups=2),
            "transposed": nn.ConvTranspose2d(6, 8, 2, groups=2),
            "ensemble": BatchedLinear(2, 6, 4),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    nn.init.normal_(module["ensemble"].weight)
    biases = {n: p.clone() for n, p in module.named_parameters() if "bias" in n}
    report = fire_(module)
    assert len(report.layers) == 9  # attention has two
    singular_values_are(module["linear"].weight, (4 / 6) ** 0.5)
    singular_values_are(module["conv1d"].weight.movedim(-1, 0), (5 / 3) ** 0.5 / 4)
    singular_values_are(module["conv2d"].weight[:, :, 1, 0], (5 / 3) ** 0.5 / 4)
    singular_values_are(module["conv3d"].weight[:, :, 1, 0, 1], (5 / 3) ** 0.5 / 8)
    singular_values_are(module["grouped"].weight[:, :, 2, 1], (4 / 3) ** 0.5 / 9)
    singular_values_are(module["transposed"].weight[:, :, 1, 1], (4 / 6) ** 0.5 / 4)
    singular_values_are(module["ensemble"].weight, (4 / 6) ** 0.5)
    singular_values_are(module["attention"].in_proj_weight.view(3, 8, 8), 1.0)
    singular_values_are(module["attention"].out_proj.weight, 1.0)
    assert all(torch.equal(p, biases[n]) for n, p in module.named_parameters() if n in biases)
    assert all(layer.residual < 1e-6 and layer.condition_number >= 1 for layer in report.layers)
    assert str(report).count("\n") == 9


@pytest.mark.parametrize("scale", ["paper", "unit", "mean_singular_value", "preserve_norm"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(7, 5), lambda: nn.Conv2d(4, 6, (3, 2))])
def test_fire_is_the_reference_formula(make, scale: str) -> None:
    module = make()
    expected = fire_reference(module.weight, scale)
    (layer,) = fire_(module, scale=scale).layers
    torch.testing.assert_close(module.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)
    if scale == "unit":
        assert layer.scale == 1.0


def test_flattened_convolution_is_one_matrix() -> None:
    conv = nn.Conv2d(3, 5, 2)
    fire_(conv, conv_form="flatten", scale="unit")
    singular_values_are(conv.weight.flatten(1), 1.0)


@pytest.mark.parametrize("parts", [1, 3, 6])
def test_fused_projections_whole_split_or_per_head(parts: int) -> None:
    block = nn.ModuleDict({"qkv": nn.Linear(12, 36), "out": nn.Linear(12, 12)})
    fire_(block, fused={"*qkv": parts})
    matrices = block["qkv"].weight.view(parts, 36 // parts, 12)
    singular_values_are(matrices, (36 / parts / 12) ** 0.5)
    with pytest.raises(ValueError, match="does not hold 5 equal matrices"):
        fire_(block, fused={"qkv": 5})


def test_attention_per_head() -> None:
    attention = nn.MultiheadAttention(8, 4)
    fire_(attention, fused={"in_proj_weight": 12}, scale="unit")
    singular_values_are(attention.in_proj_weight.view(12, 2, 8), 1.0)


def test_tied_weights_are_changed_once() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    module["head"].weight = module["embedding"].weight
    before = module["embedding"].weight.clone()
    with pytest.raises(
        ValueError, match=r"no weight layer to change .*: head: is the embedding embedding\.w"
    ):
        fire_(module)
    assert torch.equal(module["embedding"].weight, before)
    report = fire_(module, embeddings="orthogonalize")
    assert [layer.layer for layer in report.layers] == ["embedding"]
    assert module["head"].weight is module["embedding"].weight
    singular_values_are(module["embedding"].weight, (4 / 10) ** 0.5)
    pair = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    pair[1].weight = pair[0].weight
    assert [layer.layer for layer in fire_(pair).layers] == ["0", "2"]
    singular_values_are(pair[1].weight, 1.0)


def test_include_exclude_roles_and_options() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(9, 5), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        )

    def touched(**options) -> list[str]:
        return [layer.layer for layer in fire_(network(), **options).layers]

    assert touched() == ["1", "3", "5"]
    assert touched(roles=("hidden",)) == ["3"]
    assert touched(include="[13]") == ["1", "3"]
    assert touched(exclude=["1", lambda layer: layer.role == "head"]) == ["3"]
    assert touched(embeddings="orthogonalize") == ["0", "1", "3", "5"]
    module = network()
    with torch.no_grad():
        module[2].weight.fill_(3.0)
    fire_(module, biases="zero", norms="identity", embeddings="orthogonalize")
    singular_values_are(module[0].weight, (5 / 9) ** 0.5)
    assert torch.equal(module[1].bias, torch.zeros(6)) and torch.equal(module[2].weight, torch.ones(6))


def test_errors_change_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        module[1].weight[0, 0] = float("nan")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="1 holds NaN"):
        fire_(module)
    assert torch.equal(module[0].weight, before["0.weight"])
    with pytest.raises(ValueError, match="roles 'output' is not one of input, hidden, head"):
        fire_(module, roles=("output",))


@pytest.mark.parametrize("strength", [0.0, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused_before_anything_changes(strength: float) -> None:
    module = nn.Linear(4, 3)
    before = module.weight.clone()
    with pytest.raises(ValueError, match=r"strength must lie in \(0, 1\]"):
        fire_(module, strength=strength)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("options", [{"exclude": "haed*"}, {"include": ["0", "nope.*"]}])
def test_a_pattern_without_a_layer_is_refused_before_anything_changes(options) -> None:
    module = nn.Sequential(OrderedDict([("0", nn.Linear(4, 3)), ("head", nn.Linear(3, 2))]))
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(ValueError, match=r"(haed\*|nope\.\*)' matches no weight layer; there are 0, head"):
        fire_(module, **options)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))


def test_weights_without_values_are_an_error() -> None:
    with pytest.raises(TypeError, match="0 is on the meta device"):
        fire_(nn.Sequential(nn.Linear(4, 3, device="meta")))


def test_parametrized_modules_are_an_error_unless_left_out() -> None:
    module = nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match="the weight of 1 is computed"):
        fire_(module)
    assert len(fire_(module, exclude="1").layers) == 1


def test_condition_numbers_in_the_report() -> None:
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([1.0, 0.1, 1e-3])))
    assert fire_(linear).layers[0].condition_number == pytest.approx(1e3, rel=1e-5)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([1.0, 0.1, 1e-12])))
    assert fire_(linear).layers[0].condition_number == pytest.approx(1e12, rel=1e-5)
    with torch.no_grad():
        linear.weight.zero_()
    assert fire_(linear).layers[0].condition_number == float("inf")


def fired(weight: Tensor, **options) -> Tensor:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    fire_(linear, **options)
    return linear.weight.detach()


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator(seed)))[0]


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
@pytest.mark.parametrize("scale", ["paper", "unit"])
def test_no_other_isometry_of_that_scale_is_closer(shape: tuple[int, int], scale: str) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=generator(1))
    best = fired(weight, scale=scale)
    error = float(sfe(weight, best))
    size = float(torch.linalg.matrix_norm(best, 2))
    for seed in range(50):
        noise = torch.randn(shape, dtype=torch.float64, generator=generator(100 + seed)) * 10.0 ** (
            -(seed % 5)
        )
        left, _, right = torch.linalg.svd(best / size + noise, full_matrices=False)
        assert float(sfe(weight, size * left @ right)) >= error


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
@pytest.mark.parametrize("scale", ["paper", "unit", "mean_singular_value", "preserve_norm"])
def test_invariance_under_orthogonal_changes_of_basis(shape: tuple[int, int], scale: str) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=generator(2))
    left, right = rotation(shape[0], 3), rotation(shape[1], 4)
    torch.testing.assert_close(
        fired(left @ weight @ right, scale=scale), left @ fired(weight, scale=scale) @ right
    )


@pytest.mark.parametrize("scale", ["paper", "unit", "mean_singular_value", "preserve_norm"])
def test_idempotence(scale: str) -> None:
    once = fired(torch.randn(200, 300, generator=generator(5)), scale=scale)
    torch.testing.assert_close(fired(once, scale=scale), once, rtol=0, atol=1e-6)


def test_isometric_layers_have_equally_active_units() -> None:
    # FIRE theorem 4 with deviation 0: every unit's share of activity is 1 for Gaussian inputs.
    weight = fired(torch.randn(16, 64, dtype=torch.float64, generator=generator(6)), scale="unit")
    inputs = torch.randn(200_000, 64, dtype=torch.float64, generator=generator(7))
    activity = torch.relu(inputs @ weight.T).mean(0)
    torch.testing.assert_close(
        activity / activity.mean(), torch.ones(16, dtype=torch.float64), rtol=0.02, atol=0
    )
