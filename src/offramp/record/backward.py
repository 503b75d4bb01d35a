"""Follows the backward pass of one call of a module: the nodes that its forward pass made.

[Note: around each node] Autograd runs a node in the thread of its device, with the state of the
thread that called `backward`, and puts that state back after each node, after a failing one too. A
mode that is entered just before a node and left just after it is so in the right thread, and sees
what this node calls and nothing else: what other modules' nodes call, and hooks of gradients, is
not of the module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from offramp.record.operators import Following, OperatorTrace

_COMPILED = "CompiledFunction"  # one piece: it has no operators to follow


def now() -> int:
    """The place of the next node of this thread in the order in which nodes are made."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def follow(trace: OperatorTrace, outputs: Iterable[Tensor], since: int) -> list[RemovableHandle]:
    """Have the trace keep what the nodes call that were made from `since` on and lead to outputs.

    Nodes that add gradients to parameters are among them. The handles take all hooks away.
    """
    handles: list[RemovableHandle] = []
    for node in _made(outputs, since):
        if _COMPILED not in node.name():
            handles += _around(node, trace)
    return handles


def _made(outputs: Iterable[Tensor], since: int) -> Iterator[Node]:
    left = [one.grad_fn for one in outputs]
    seen: set[Node] = set()
    while left:
        node = left.pop()
        if node is None or node in seen or node._sequence_nr() < since:
            continue
        seen.add(node)
        left += [following for following, _ in node.next_functions]
        yield node


def _around(node: Node, trace: OperatorTrace) -> tuple[RemovableHandle, RemovableHandle]:
    """See [Note: around each node]."""
    entered: list[Following] = []
    name = node.name().rpartition("::")[2]

    def before(*_: Any) -> None:
        mode = trace.backward(name)
        mode.__enter__()
        entered.append(mode)

    def after(*_: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    return node.register_prehook(before), node.register_hook(after)
