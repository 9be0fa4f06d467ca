"""Weights as batches of matrices, roles, names, and the layer scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fire.network.layers import weight_layers
from fire.network.scale import layer_scale
from fire.polar.isometry import closest_scale, closest_scale_of_values, dfi, sfe, short_gram
from tests.fire.fire_networks import BatchedLinear, make_slot

MODULES = {
    "linear": (nn.Linear(6, 4), (4, 6)),
    "conv1d": (nn.Conv1d(3, 4, 5), (1, 5, 4, 3)),
    "conv2d": (nn.Conv2d(3, 4, (2, 3)), (1, 6, 4, 3)),
    "conv3d": (nn.Conv3d(2, 4, 2), (1, 8, 4, 2)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (1, 9, 8, 3)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, groups=2), (1, 9, 4, 6)),
    "ensemble": (BatchedLinear(2, 6, 4), (2, 4, 6)),
}


@pytest.mark.parametrize("kind", list(MODULES))
@pytest.mark.parametrize("conv_form", ["slices", "flatten"])
def test_matrices_and_back(kind: str, conv_form: str) -> None:
    module, shape = MODULES[kind]
    nn.init.normal_(module.weight)
    (layer,) = weight_layers(module, conv_form=conv_form)
    matrices = layer.matrices()
    if conv_form == "slices" or layer.kind == "linear":
        assert matrices.shape == shape
    else:
        assert matrices.shape == (shape[0], shape[2], shape[3] * shape[1])
    assert torch.equal(layer.weight_from(matrices), layer.weight)


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.Conv1d(6, 6, 3, groups=6)],
)
@pytest.mark.parametrize("form", ["slices", "flatten"])
def test_groups_of_a_convolution_apart(module, form: str) -> None:
    (layer,) = weight_layers(module, conv_form=f"group_{form}")
    groups, weight = module.groups, module.weight
    if isinstance(module, nn.ConvTranspose2d):
        parts = [part.transpose(0, 1) for part in weight.chunk(groups, 0)]
    else:
        parts = weight.chunk(groups, 0)
    for part, matrices in zip(parts, layer.matrices(), strict=True):
        if form == "flatten":
            assert torch.equal(matrices, part.flatten(1))
        else:
            assert torch.equal(matrices, part.flatten(2).movedim(-1, 0))
    assert torch.equal(layer.weight_from(layer.matrices()), weight)


def test_conv_slices_are_the_kernel_positions() -> None:
    conv = nn.Conv2d(3, 4, (2, 3))
    (layer,) = weight_layers(conv)
    assert torch.equal(layer.matrices()[0, 1 * 3 + 2], conv.weight[:, :, 1, 2])
    transposed = nn.ConvTranspose2d(3, 4, (2, 3))
    (layer,) = weight_layers(transposed)
    assert torch.equal(layer.matrices()[0, 4], transposed.weight[:, :, 1, 1].T)


def test_roles_names_and_preserve() -> None:
    layers = make_slot("conv").layers()
    assert [(layer.name, layer.role) for layer in layers] == [
        ("0", "input"),
        ("3", "hidden"),
        ("6", "hidden"),
        ("8", "head"),
    ]
    module = make_slot("mlp").module
    assert [layer.role for layer in weight_layers(module, heads=("0", "5"))] == ["head", "hidden", "head"]
    assert [layer.name for layer in weight_layers(module, preserve=("0",))] == ["3", "5"]
    with pytest.raises(ValueError, match="no weight layer is called 'mean'; there are 0, 3, 5"):
        weight_layers(module, heads=("mean",))


def test_attention_projections() -> None:
    layers = weight_layers(nn.MultiheadAttention(8, 2))
    assert [(layer.name, tuple(layer.matrices().shape)) for layer in layers] == [
        ("in_proj_weight", (3, 8, 8)),
        ("out_proj", (8, 8)),
    ]
    layers = weight_layers(nn.MultiheadAttention(8, 2, kdim=5, vdim=6))
    assert [tuple(layer.matrices().shape) for layer in layers] == [(8, 8), (8, 5), (8, 6), (8, 8)]


def test_tied_weights_appear_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert [layer.name for layer in weight_layers(module)] == ["0"]


@pytest.mark.parametrize("wrap", [parametrizations.orthogonal, parametrizations.weight_norm])
def test_parametrized_weights_are_an_error(wrap) -> None:
    with pytest.raises(TypeError, match="the weight of 1 is computed"):
        weight_layers(nn.Sequential(nn.Linear(2, 2), wrap(nn.Linear(4, 4))))


def test_lazy_weights_are_an_error() -> None:
    with pytest.raises(TypeError, match="lazy"):
        weight_layers(nn.LazyLinear(3))


def test_paper_scale() -> None:
    (layer,) = weight_layers(nn.Linear(512, 128))
    assert layer_scale(layer).item() == pytest.approx(0.5)
    (layer,) = weight_layers(nn.Conv2d(4, 64, 8))
    assert layer_scale(layer).unique().item() == pytest.approx(4 / 64)
    (layer,) = weight_layers(nn.Conv2d(4, 64, 8), conv_form="flatten")
    assert layer_scale(layer).unique().item() == pytest.approx((64 / 256) ** 0.5)


def test_mean_singular_value_has_the_smallest_sfe() -> None:
    layer_module = nn.Linear(20, 30)
    (layer,) = weight_layers(layer_module)
    left, spectrum, right = torch.linalg.svd(layer.matrices().double(), full_matrices=False)
    factor = left @ right
    best = layer_scale(layer, "mean_singular_value")
    assert best.item() == pytest.approx(spectrum.mean().item())
    assert layer_scale(layer, "mean_singular_value", factor).item() == pytest.approx(spectrum.mean().item())
    errors = [float(sfe(layer.weight.detach(), s * best * factor)) for s in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])


def test_preserve_norm() -> None:
    (layer,) = weight_layers(nn.Linear(20, 30))
    left, _, right = torch.linalg.svd(layer.matrices().double(), full_matrices=False)
    scaled = layer_scale(layer, "preserve_norm") * (left @ right)
    assert scaled.norm().item() == pytest.approx(layer.matrices().double().norm().item())


def test_dfi_from_singular_values() -> None:
    matrices = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrices)
    expected = (values.square() - 1).square().sum(-1)
    torch.testing.assert_close(dfi(matrices), expected)
    torch.testing.assert_close(dfi(matrices.mT), expected)
    torch.testing.assert_close(dfi(matrices, 2.0), ((values / 2).square() - 1).square().sum(-1))


def test_no_scale_is_closer_than_the_closest() -> None:
    matrices = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    closest = closest_scale(short_gram(matrices))
    torch.testing.assert_close(closest, closest_scale_of_values(torch.linalg.svdvals(matrices)))
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert (dfi(matrices, factor * closest) > dfi(matrices, closest)).all()
    isometries = torch.linalg.qr(matrices).Q
    torch.testing.assert_close(closest_scale(short_gram(3 * isometries)), torch.full((3,), 3.0).double())
    assert closest_scale(torch.zeros(2, 2, dtype=torch.float64)) == 1
