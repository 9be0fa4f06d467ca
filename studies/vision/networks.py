"""The networks of FIRE's vision experiments: ResNet-18 and VGG16 with BatchNorm, ViT-Tiny, and a small CNN for CPUs.

Written here because torchvision has no CPU build for the pinned PyTorch on PyPI. Parameter counts and outputs are
checked against torchvision's and timm's (tests/studies/). Activations are modules, so that metrics and resets of units
see them. Initial weights are PyTorch's defaults, those of the transformer timm's (truncated normal, 0.02).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from configs.errors import ConfigError


class SmallCNN(nn.Sequential):
    """Two 3 x 3 convolutions (the second with stride 2), a hidden layer of 64 and a head; ReLU, no norms."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        side = (image_size + 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, arXiv 1512.03385, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with the stem for small images: 3 x 3, stride 1, no pooling."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int, *, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        before = width
        for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            blocks += [BasicBlock(before, channels, stride), BasicBlock(channels, channels, 1)]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class VGG16(nn.Module):
    """VGG16 with BatchNorm (Simonyan and Zisserman 2015, arXiv 1409.1556, D) and FIRE's head 1024-1024; no dropout."""

    LAYOUT = (
        64,
        64,
        0,
        128,
        128,
        0,
        256,
        256,
        256,
        0,
        512,
        512,
        512,
        0,
        512,
        512,
        512,
        0,
    )  # 0: halve the image

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        if image_size % 32:
            raise ConfigError(
                f"--network vgg16: images must be a multiple of 32 pixels wide, these have {image_size}"
            )
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for channels in self.LAYOUT:
            if not channels:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            width = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512 * (image_size // 32) ** 2, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        return self.classifier(self.features(x))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762) with separate query, key and value."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to the same shape."""
        heads = [
            f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for f in (self.to_q, self.to_k, self.to_v)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with a class token and learned positions."""

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        num_heads: int = 3,
    ) -> None:
        if image_size % patch:
            raise ConfigError(
                f"--network vit_tiny: {image_size} pixels are not a multiple of the patch, {patch}"
            )
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, num_heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "vit_tiny": ViT,
    "vgg16": VGG16,
}
