"""A function of tensors as the plain list of operations that it runs.

Batched losses of small networks spend most of their time in ``torch.vmap``, autograd and Python; the operations
themselves, gradients included, are found once and then run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from torch.fx.node import map_arg

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
SUMS = (aten.add.Tensor, aten.baddbmm.default, aten.bmm.default, aten.addmm.default, aten.mm.default)
# Operations whose result depends on the shape of their first argument alone.
FILLS = (aten.ones_like.default, aten.zeros_like.default, aten.new_zeros.default, aten.new_ones.default)
# Operations that return their first argument as it is, where shapes (or the factor) say so.
ALIASES = (aten.detach.default, aten.alias.default)
RESHAPES = (aten.view.default, aten.expand.default, aten._unsafe_view.default)


def trace(function: Function, fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> Function:
    """Return ``function`` of tensors like ``inputs``, as its operations alone; ``fixed`` are its first arguments.

    The operations are the same on the same values, so that results are equal bit for bit. Views of ``fixed``, which
    change in place only, and constants are taken once. A function that decides by the value of a tensor, or cannot be
    traced for another reason, is run as it is.
    """
    try:
        module = make_fx(function, tracing_mode="fake")(*fixed, *inputs)  # on shapes alone, changes no tensor
    except NOT_TRACEABLE:
        return partial(function, *fixed)
    graph = module.graph
    _drop_identities(graph)
    pure = not any(_is_mutable(node) for node in graph.nodes)
    known = _take_known(graph, fixed, pure)
    if pure:
        _overwrite_sums(graph)
    module.recompile()
    run = module.forward

    def traced(*tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return run(*known, *tensors)

    return traced


def _feeds_one(node: Any, target: Any) -> bool:
    """Whether ``node`` is that operation and has a single user."""
    return isinstance(node, Node) and node.target is target and len(node.users) == 1


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _take_known(graph: Graph, fixed: Sequence[Tensor], constants: bool) -> list[Tensor]:
    """Make views of the arguments ``fixed``, and ``constants``, arguments themselves; return all that come first."""
    first = [node for node in graph.nodes if node.op == "placeholder"][len(fixed) :]
    known: dict[Node, Tensor] = dict(zip(graph.nodes, fixed, strict=False))
    constant: set[Node] = set()
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        is_fill = constants and node.target in FILLS
        is_constant = is_fill or (bool(sources) and constant.issuperset(sources))
        is_view = node.target in VIEWS and all(source in known for source in sources)
        if node.op != "call_function" or not (is_constant or is_view):
            continue
        values = {s: known[s] if s in known else _like(s.meta["val"]) for s in sources}
        args, kwargs = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
        with graph.inserting_before(first[0] if first else node):
            argument = graph.placeholder(f"known{len(known)}")
        argument.meta = node.meta
        node.replace_all_uses_with(argument)
        graph.erase_node(node)
        known[argument] = node.target(*args, **kwargs)
        if is_constant:
            constant.add(argument)
    unused = [node for node in known if not node.users]
    for node in unused:
        graph.erase_node(node)
        del known[node]
    return list(known.values())


def _like(fake: Tensor) -> Tensor:
    return torch.empty(fake.shape, dtype=fake.dtype, device=fake.device)


def _overwrite_sums(graph: Graph) -> None:
    """Let ReLU write over a sum or product that nothing else reads."""
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.target is aten.relu.default and any(_feeds_one(source, target) for target in SUMS):
            node.target = aten.relu_.default


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
