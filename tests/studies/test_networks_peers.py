"""Outputs of the vision networks beside torchvision's and timm's, where these are installed.

pip install --no-deps torchvision==0.28.0 timm==1.0.31 safetensors
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studies.vision.networks import VGG16, ResNet18, ViT


@pytest.fixture(scope="module")
def peers():
    """torchvision's models.

    Its wheels are built for CUDA: beside a CPU build of PyTorch its operators are missing. The models use none of them,
    but the import wants two declared.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision.extension
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pytest.skip("torchvision is not installed")
    import torchvision

    yield torchvision.models
    operators._destroy()


def same_outputs(ours, theirs, side, tolerance=1e-4):
    """Gives both the same weights, in the order in which they are defined, and compares outputs, also as BatchNorm
    trains."""
    torch.manual_seed(0)
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            positive = "running_var" in name
            tensor.copy_(torch.rand_like(tensor) + 0.5 if positive else torch.randn_like(tensor) * 0.1)
    values = list(theirs.state_dict().values())
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in values]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(3, 3, side, side)
    for network in (ours, theirs):
        network.eval()
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(
            ours(images), expected, rtol=tolerance, atol=tolerance * expected.abs().max()
        )
        for network in (ours, theirs):
            network.train()
        expected = theirs(images)
        torch.testing.assert_close(
            ours(images), expected, rtol=tolerance, atol=tolerance * expected.abs().max()
        )


def test_resnet18_is_torchvisions_with_the_stem_for_small_images(peers):
    theirs = peers.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    same_outputs(ResNet18(3, 32, 10), theirs, 32)


def test_vgg16_is_torchvisions_with_another_head(peers):
    theirs = peers.vgg16_bn(num_classes=10)
    theirs.avgpool = nn.Identity()
    theirs.classifier = nn.Sequential(
        nn.Linear(2_048, 1_024), nn.ReLU(), nn.Linear(1_024, 1_024), nn.ReLU(), nn.Linear(1_024, 10)
    )
    same_outputs(VGG16(3, 64, 10), theirs, 64)


def test_vit_is_timms_with_query_key_and_value_apart(peers):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = ViT(3, 32, 10).eval()
    weights = {"patches": theirs.patch_embed.proj, "norm": theirs.norm, "head": theirs.head}
    state = {"cls": theirs.cls_token, "positions": theirs.pos_embed}
    for index, block in enumerate(theirs.blocks):
        at = f"blocks.{index}."
        weights |= {
            f"{at}norm1": block.norm1,
            f"{at}norm2": block.norm2,
            f"{at}attention.to_out": block.attn.proj,
        }
        weights |= {f"{at}mlp.0": block.mlp.fc1, f"{at}mlp.2": block.mlp.fc2}
        for kind in ("weight", "bias"):
            for part, tensor in zip("qkv", getattr(block.attn.qkv, kind).chunk(3), strict=True):
                state[f"{at}attention.to_{part}.{kind}"] = tensor
    state |= {
        f"{name}.{kind}": getattr(m, kind) for name, m in weights.items() for kind in ("weight", "bias")
    }
    ours.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
