"""GPT: a decoder-only transformer with pre-norm, fused query-key-value and a head tied to the token embedding.

Sizes from ``GPT(256, 128, depth=4, width=128)`` to GPT-2 small, which FIRE's language experiments train without biases
(nanoGPT's form; Radford et al. 2019). Parameter counts are checked against both (tests/studies/test_networks.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from configs.errors import ConfigError

FUSED = {"*.qkv": 3}  # for NetworkSlot.fused


class CausalAttention(nn.Module):
    """Causal multi-head self-attention; ``qkv`` holds query, key and value, (3 width, width)."""

    def __init__(self, width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block with a GELU MLP four times as wide."""

    def __init__(self, width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = CausalAttention(width, num_heads, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Token and position embeddings, ``depth`` blocks, a norm, and the embedding once more as the output layer.

    Weights are drawn as GPT-2's: normal with deviation 0.02, the layers that write into the residual stream divided by
    sqrt(2 depth).

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        depth, width, num_heads: blocks, width of the residual stream, heads of each attention.
        bias: whether linear layers and norms have biases, as in GPT-2.
    """

    def __init__(
        self, vocabulary: int, context: int, *, depth: int, width: int, num_heads: int, bias: bool = False
    ) -> None:
        if width % num_heads:
            raise ConfigError(f"--width {width} is not a multiple of --heads {num_heads}")
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 to logits of the next ones (B, T, vocabulary)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))


@torch.no_grad()
def continuation(
    model: GPT, prompt: Tensor, num_tokens: int, generator: torch.Generator, temperature: float = 0.8
) -> Tensor:
    """Sample ``num_tokens`` after ``prompt`` (T,), from a CPU generator; returns prompt and continuation.

    The model should be in evaluation mode. Logits are divided by ``temperature``.
    """
    text = prompt
    for _ in range(num_tokens):
        logits = model(text[-model.context :].unsqueeze(0))[0, -1]
        shares = (logits.float() / temperature).softmax(-1).cpu()
        text = torch.cat([text, torch.multinomial(shares, 1, generator=generator).to(text.device)])
    return text


def adamw(model: nn.Module, learning_rate: float, weight_decay: float = 0.1) -> torch.optim.AdamW:
    """AdamW with GPT's betas (0.9, 0.95); only matrices and embeddings decay (nanoGPT, as FIRE's scripts)."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
