"""A function of tensors as the plain list of operations that it runs.

Batched losses of small networks spend most of their time in ``torch.vmap``, autograd and Python; the operations
themselves, gradients included, are found once and then run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

Function = Callable[..., list[Tensor]]
# What a function does that cannot be traced by shapes alone: decide by a value, or run an operation without a rule for
# shapes (the fused block's, for wide networks, which spend their time in products anyway).
NOT_TRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    UnsupportedOperatorException,
)
aten = torch.ops.aten
# Operations that return their first argument as it is, where shapes (or the factor) say so.
ALIASES = (aten.detach.default, aten.alias.default)
RESHAPES = (aten.view.default, aten.expand.default, aten._unsafe_view.default)


def trace(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Return ``function``, which takes tensors like ``inputs`` and returns a list, as its operations alone.

    They are the same on the same values, so that results are equal bit for bit. A function that decides by the value of
    a tensor, or cannot be traced for another reason, is returned as it is.
    """
    try:
        module = make_fx(function, tracing_mode="fake")(*inputs)  # runs on shapes alone and changes no tensor
    except NOT_TRACEABLE:
        return function
    _drop_identities(module.graph)
    module.recompile()
    run = module.forward

    def traced(*tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return run(*tensors)

    return traced


def _drop_identities(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_identity(node: Node) -> bool:
    if node.target in ALIASES:
        return True
    if node.target is aten.mul.Scalar:
        return bool(node.args[1] == 1)
    source = node.args[0]
    if node.target not in RESHAPES or not isinstance(source, Node):
        return False
    return bool(source.meta["val"].shape == node.meta["val"].shape)
