"""A function of tensors as the plain list of operations that it runs.

Batched losses of small networks spend most of their time in ``torch.vmap``, autograd and Python; the operations
themselves, gradients included, are found once and then run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
# Operations that look at a tensor's own memory.
VIEWS = (aten.view.default, aten.expand.default, aten.transpose.int, aten.t.default, aten.permute.default)
# Operations that return their first argument as it is, where shapes (or the factor) say so.
ALIASES = (aten.detach.default, aten.alias.default)
RESHAPES = (aten.view.default, aten.expand.default, aten._unsafe_view.default)


def trace(function: Function, fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> Function:
    """Return ``function`` of tensors like ``inputs``, as its operations alone; ``fixed`` are its first arguments.

    The operations are the same on the same values, so that results are equal bit for bit. Views of ``fixed``, which
    change in place only, are taken once. A function that decides by the value of a tensor, or cannot be traced for
    another reason, is run as it is.
    """
    try:
        module = make_fx(function, tracing_mode="fake")(*fixed, *inputs)  # on shapes alone, changes no tensor
    except NOT_TRACEABLE:
        return partial(function, *fixed)
    _drop_identities(module.graph)
    known = _take_views(module.graph, fixed)
    module.recompile()
    run = module.forward

    def traced(*tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return run(*known, *tensors)

    return traced


def _take_views(graph: Graph, fixed: Sequence[Tensor]) -> list[Tensor]:
    """Make the views of the first arguments ``fixed`` arguments themselves; return all that now come first."""
    first = [node for node in graph.nodes if node.op == "placeholder"][len(fixed) :]
    known: dict[Node, Tensor] = dict(zip(graph.nodes, fixed, strict=False))
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        if node.op == "call_function" and node.target in VIEWS and all(source in known for source in sources):
            view = node.target(known[sources[0]], *node.args[1:])
            with graph.inserting_before(first[0] if first else node):
                argument = graph.placeholder(f"view{len(known)}")
            node.replace_all_uses_with(argument)
            graph.erase_node(node)
            known[argument] = view
    unused = [node for node in known if not node.users]
    for node in unused:
        graph.erase_node(node)
        del known[node]
    return list(known.values())


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
