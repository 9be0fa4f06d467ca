"""Parameter counts as published, and transformer blocks against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs.errors import ConfigError
from studies.language.gpt import GPT, Block, adamw, continuation
from studies.vision.networks import VGG16, ResNet18, SmallCNN, ViT, ViTBlock


def count(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


@pytest.mark.parametrize(
    "make, expected",
    [
        # torchvision's resnet18 has 11,689,512; the stem is 3 x 3 instead of 7 x 7, the head has 10 classes.
        (lambda: ResNet18(3, 32, 10), 11_689_512 - 3 * 64 * (49 - 9) - 513 * 990),
        (lambda: ResNet18(3, 32, 10), 11_173_962),  # as stated for the usual CIFAR ResNet-18
        # torchvision's vgg16_bn has 138,365,992, of which 123,642,856 are its head.
        (lambda: VGG16(3, 64, 200), 138_365_992 - 123_642_856 + 2049 * 1024 + 1025 * 1024 + 1025 * 200),
        (lambda: ViT(3, 224, 1000, patch=16), 5_717_416),  # timm's vit_tiny_patch16_224
        # GPT-2 small: 124,439,808.
        (lambda: GPT(50257, 1024, depth=12, width=768, num_heads=12, bias=True), 124_439_808),
        # nanoGPT states 123.59M, positions (1024 x 768) not counted, for its form without biases and 50304 tokens.
        (lambda: GPT(50304, 1024, depth=12, width=768, num_heads=12), 123_587_328 + 786_432),
        (lambda: SmallCNN(1, 8, 10), 160 + 4_640 + 32_832 + 650),
    ],
)
def test_parameter_counts(make, expected):
    assert count(make) == expected


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_are_pytorchs_pre_norm_layers(causal):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    attention = theirs.self_attn
    if causal:
        ours = Block(12, 3, bias=True)
        ours.norm1.eps = ours.norm2.eps = 1e-6
        pairs = [
            (ours.attention.qkv.weight, attention.in_proj_weight),
            (ours.attention.qkv.bias, attention.in_proj_bias),
        ]
        layers = [
            (ours.attention.out, attention.out_proj),
            (ours.up, theirs.linear1),
            (ours.down, theirs.linear2),
        ]
    else:
        ours = ViTBlock(12, 3, 48)
        pairs = []
        for part, q in enumerate((ours.attention.to_q, ours.attention.to_k, ours.attention.to_v)):
            pairs += [(q.weight, attention.in_proj_weight.chunk(3)[part])]
            pairs += [(q.bias, attention.in_proj_bias.chunk(3)[part])]
        layers = [(ours.attention.to_out, attention.out_proj)]
        layers += [(ours.mlp[0], theirs.linear1), (ours.mlp[2], theirs.linear2)]
    layers += [(ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2)]
    with torch.no_grad():
        for mine, other in [
            *pairs,
            *((getattr(a, n), getattr(b, n)) for a, b in layers for n in ("weight", "bias")),
        ]:
            mine.copy_(other)
        x = torch.randn(4, 7, 12)
        mask = nn.Transformer.generate_square_subsequent_mask(7) if causal else None
        torch.testing.assert_close(ours(x), theirs(x, src_mask=mask), atol=1e-5, rtol=1e-5)


def test_gpt_does_not_look_ahead_and_knows_places():
    model = GPT(20, 8, depth=2, width=12, num_heads=3)
    tokens = torch.arange(8).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 5] = 19
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert bool((difference[:5] == 0).all()) and bool((difference[5:] > 0).all())
    same = model(torch.zeros(1, 8, dtype=torch.long))[0]
    assert not torch.allclose(same[0], same[1])


def test_a_continuation_follows_its_generator():
    model = GPT(20, 8, depth=1, width=12, num_heads=3).eval()
    texts = [
        continuation(model, torch.tensor([1, 2]), 20, torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert len(texts[0]) == 22 and texts[0][:2].tolist() == [1, 2]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_only_matrices_decay():
    model = GPT(20, 8, depth=1, width=12, num_heads=3)
    groups = adamw(model, 1e-3).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    assert all(p.ndim == 1 for p in groups[1]["params"])


@pytest.mark.parametrize(
    "make",
    [lambda: VGG16(3, 8, 10), lambda: ViT(3, 9, 10), lambda: GPT(20, 8, depth=1, width=10, num_heads=3)],
)
def test_sizes_that_do_not_fit(make):
    with pytest.raises(ConfigError, match="multiple"):
        make()
