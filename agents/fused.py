"""The residual block of an ensemble as one operation, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_WIDTH = 256  # below, going from critic to critic costs more than it gains (results/throughput.md)
# oneDNN's product with bias, ReLU or sum in one pass, and at these shapes faster than MKL's. PyTorch has no public name
# for it; its compiler calls it too.
_linear: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


def supports(x: Tensor) -> bool:
    """Whether :func:`residual_block` can take ``x``; never under autocast or ``torch.compile``."""
    return (
        _linear is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def residual_block(
    x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
) -> Tensor:
    """``x + W2 relu(W1 norm(x) + b1) + b2`` for each of ``E`` critics (SimBa, equation 4), ``(E, B, D)`` float32.

    ``scale`` and ``shift`` ``(E, D)`` belong to the layer norm; ``w1 (E, H, D)``, ``b1 (E, H)``, ``w2 (E, D, H)``,
    ``b2 (E, D)``. Works under ``torch.vmap`` and has second derivatives.
    """
    return _ResidualBlock.apply(x, scale, shift, w1, b1, w2, b2, eps)[0]


class _ResidualBlock(torch.autograd.Function):
    """Goes from critic to critic: what one product leaves in the cache, the next operation finds there."""

    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept: list[Tensor] = []
        for e, own in enumerate(x):
            normed, mean, rstd = torch.native_layer_norm(own, own.shape[-1:], scale[e], shift[e], eps)
            hidden = _linear(normed, w1[e], b1[e], "relu", [], "")
            out[e] = _linear.binary(hidden, own, w2[e], b2[e], "add")
            kept += normed, mean, rstd, hidden
        return out, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.eps = inputs[-1]
        ctx.set_materialize_grads(False)  # of what is only kept: it would be filled with zeros
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:-1], *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        inputs, kept = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        if torch.is_grad_enabled():  # a second derivative is wanted: through operations that have one
            wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad[:7], strict=True) if needed]
            x, scale, shift, w1, b1, w2, b2 = inputs
            plain = _plain(x, scale, shift, w1, b1, w2, b2, ctx.eps)
            found = iter(torch.autograd.grad(plain, wanted, grad, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:7]), None
        x, scale, shift, w1, _, w2, _ = inputs
        learns = any(ctx.needs_input_grad[1:7])
        grad_x = torch.zeros_like(grad)
        grads = [torch.empty_like(tensor) for tensor in inputs[1:]] if learns else []
        for e in range(len(x)):
            normed, mean, rstd, hidden = kept[4 * e : 4 * e + 4]
            grad_out, own_x, rows = grad[e], x[e], torch.empty(0)
            product: Callable[[Tensor, Tensor], Tensor] = torch.mm
            if not learns:
                # Where the smallest of several critics counts, a sample has a gradient in one of them only.
                rows = grad_out.abs().amax(1).nonzero().squeeze(1)
                if len(rows) == 0:
                    continue
                if len(rows) < len(grad_out):
                    grad_out, own_x, mean, rstd, hidden = (
                        t[rows] for t in (grad_out, own_x, mean, rstd, hidden)
                    )
                    product = _product  # MKL is slow for few rows
            grad_hidden = product(grad_out, w2[e])
            torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
            grad_own, *grad_norm = torch.ops.aten.native_layer_norm_backward(
                torch.mm(grad_hidden, w1[e]),
                own_x,
                own_x.shape[-1:],
                mean,
                rstd,
                scale[e],
                shift[e],
                [True, learns, learns],
            )
            if not learns:
                grad_x[e].index_copy_(0, rows, grad_own.add_(grad_out))
                continue
            torch.add(grad_own, grad_out, out=grad_x[e])
            for whole, part in zip(grads[:2], grad_norm, strict=True):
                whole[e] = part
            torch.mm(grad_hidden.mT, normed, out=grads[2][e])
            torch.sum(grad_hidden, 0, out=grads[3][e])
            torch.mm(grad_out.mT, hidden, out=grads[4][e])
            torch.sum(grad_out, 0, out=grads[5][e])
        return (grad_x, *grads, None) if learns else (grad_x, *[None] * 7)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor], tuple[int]]:
        """K ensembles of E critics are one of K * E."""
        *tensors, eps = args
        size = info.batch_size
        stacks = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims[:-1], strict=True)
        ]
        x, scale, shift, w1, b1, w2, b2 = (t.flatten(0, 1) for t in stacks)
        out = residual_block(x, scale, shift, w1, b1, w2, b2, eps)
        return (out.unflatten(0, (size, -1)),), (0,)


def _product(x: Tensor, w: Tensor) -> Tensor:
    product: Tensor = _linear(x, w.mT, None, "none", [], "")
    return product


def _plain(
    x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], eps=eps) * scale.unsqueeze(1) + shift.unsqueeze(1)
    hidden = torch.baddbmm(b1.unsqueeze(1), normed, w1.mT).relu()
    return x + torch.baddbmm(b2.unsqueeze(1), hidden, w2.mT)
