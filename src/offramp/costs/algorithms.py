"""Closed forms of collectives: seconds by algorithm, group and bytes.

Groups of k ranks in each of N domains (sets of chips that a link joins, as a rule nodes), n ranks
in all, S bytes (Thakur, Rabenseifner and Gropp 2005; the steps are those of NCCL's
src/graph/tuning.cc):

    all_reduce, ring            2 (n-1)/n S at the slower of the link and k ports; 2 (n-1) steps
    all_reduce, tree            2 S; 2 (k-1) steps in chains and 2 log2 N between domains
    all_reduce, switch          (k+1)/k S on the link, which adds up; between domains as a tree
    all_reduce, hierarchical    2 (k-1)/k S on the link, then 2 (N-1)/N S/k at each port
    all_gather, reduce_scatter  (n-1)/n S and half the steps of an all_reduce
    broadcast, reduce           S in a pipeline over all ranks
    gather, scatter             (n-1)/n S at the root
    all_to_all                  S (k-1)/n on the link and S (n-k)/n at the port, at the same time
    send, recv                  S over the one path

Rings and trees move data on the link and between domains at the same time, so the slower counts;
the hierarchical form does one after the other. Latency adds up in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GATHERING = ("all_gather", "reduce_scatter")
PIPELINED = ("broadcast", "reduce")
ROOTED = ("gather", "scatter")
PAIRED = ("send", "recv")
NAMES = ("all_reduce", *GATHERING, *PIPELINED, *ROOTED, "all_to_all", *PAIRED, "barrier")


@dataclass(frozen=True, slots=True)
class Shape:
    """A group of `ranks` in `domains`; the fullest domain has `most` of them, another `least`."""

    ranks: int
    domains: int
    most: int
    least: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One level of the way: bytes/s that a chip sends, and that a pair does; seconds a step.

    `hops`: links that a message between two ranks crosses on average.
    """

    rate: float
    pair: float
    step: float
    tree_step: float
    hops: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """Both levels for one protocol at one end of all intervals; `far` joins the domains.

    `base`: seconds once. `tree_share`: of a ring's bandwidth. `peers`: messages under way at once
    in an all-to-all. `switch_rate`: bytes/s of a chip while the switch adds up; 0 where it cannot.
    """

    near: Hop
    far: Hop
    base: float
    tree_share: float = 1.0
    peers: int = 8
    switch_rate: float = 0.0
    switch_latency: float = 0.0


def seconds(algorithm: str, name: str, size: float, shape: Shape, case: Case) -> float:
    """Seconds of collective `name` of `size` bytes; nothing for a group of one."""
    if shape.ranks == 1:
        return 0.0
    if name in PAIRED:
        hop = case.near if shape.domains == 1 else case.far
        return case.base + hop.step + size / hop.pair
    if name == "all_to_all":
        return case.base + _all_to_all(size, shape, case)
    if name in ROOTED:
        return case.base + _rooted(size, shape, case)
    if algorithm == "switch":  # its latency includes the start
        return _switch(size, shape, case)
    if name in PIPELINED:
        return case.base + _pipelined(algorithm, size, shape, case)
    rounds = 1 if name in GATHERING else 2
    if algorithm == "tree":
        return case.base + _tree(size, shape, case)
    if algorithm == "hierarchical":
        return case.base + _hierarchical(rounds, size, shape, case)
    return case.base + _ring(rounds, size, shape, case)


def offered(algorithm: str, name: str, shape: Shape) -> bool:
    """Whether an algorithm is one for the collective and group: trees and switches add up."""
    if algorithm == "tree":
        return name in ("all_reduce", "barrier")
    if algorithm == "switch":
        return name in ("all_reduce", "barrier") and shape.least > 1
    return True


def sent(name: str, size: float, ranks: int) -> float:
    """Bytes that a rank sends, at least: what a ring moves."""
    if ranks == 1:
        return 0.0
    if name in (*PIPELINED, *PAIRED):
        return size
    return size * (ranks - 1) / ranks * (2 if name == "all_reduce" else 1)


def _ring(rounds: int, size: float, shape: Shape, case: Case) -> float:
    far = rounds * (shape.domains - 1)
    near = rounds * (shape.ranks - 1) - far
    data = rounds * (shape.ranks - 1) / shape.ranks * size
    return near * case.near.step + far * case.far.step + _slower(data, data, shape, case)


def _tree(size: float, shape: Shape, case: Case) -> float:
    chain = 2 * (shape.most - 1) * case.near.tree_step
    near = size if shape.most == 2 else 2 * size
    data = _slower(near, _tree_bytes(size, shape), shape, case)
    return chain + _tree_latency(shape, case) + data / case.tree_share


def _switch(size: float, shape: Shape, case: Case) -> float:
    data = (shape.most + 1) / shape.most * size / case.switch_rate
    if shape.domains > 1:  # switches are the nodes of a tree
        far = _tree_bytes(size, shape) / (shape.least * case.far.rate)
        data = max(data, far) / case.tree_share
    return case.switch_latency + _tree_latency(shape, case) + data


def _hierarchical(rounds: int, size: float, shape: Shape, case: Case) -> float:
    total = 0.0
    if shape.most > 1:  # all ranks of a domain exchange at once: one step
        data = (shape.most - 1) / shape.most * size
        total += rounds * (case.near.step + data / case.near.rate)
    if shape.domains > 1:
        data = (shape.domains - 1) / shape.domains * size / shape.least
        total += rounds * (_log2(shape.domains) * case.far.step + data / case.far.rate)
    return total


def _pipelined(algorithm: str, size: float, shape: Shape, case: Case) -> float:
    far = shape.domains - 1
    near = shape.ranks - 1 - far
    if algorithm == "hierarchical":
        far, near = _log2(shape.domains), min(near, 1)
    return near * case.near.step + far * case.far.step + _slower(size, size, shape, case)


def _rooted(size: float, shape: Shape, case: Case) -> float:
    share = size / shape.ranks
    near = share * (shape.most - 1) * case.near.hops / case.near.rate
    far = share * (shape.ranks - shape.most) / case.far.rate
    return _rounds(shape, case) + max(near, far)


def _all_to_all(size: float, shape: Shape, case: Case) -> float:
    share = size / shape.ranks
    near = share * (shape.most - 1) * case.near.hops / case.near.rate
    far = share * (shape.ranks - shape.least) / case.far.rate if shape.domains > 1 else 0.0
    return _rounds(shape, case) + max(near, far)


def _rounds(shape: Shape, case: Case) -> float:
    """Latency of a message to each other rank, `peers` of them at once."""
    step = case.near.step if shape.domains == 1 else max(case.near.step, case.far.step)
    return math.ceil((shape.ranks - 1) / case.peers) * step


def _slower(near: float, far: float, shape: Shape, case: Case) -> float:
    """Seconds for bytes on the link and over the ports of a domain, both at the same time."""
    inside = near / case.near.rate if shape.most > 1 else 0.0
    between = far / (shape.least * case.far.rate) if shape.domains > 1 else 0.0
    return max(inside, between)


def _tree_bytes(size: float, shape: Shape) -> float:
    """Bytes a domain sends in two binary trees of half the data each.

    A domain is inside one tree (a half up, two halves down) and a leaf of the other (a half up);
    two domains are each the root of one: a half up and a half down.
    """
    return size if shape.domains == 2 else 2 * size


def _tree_latency(shape: Shape, case: Case) -> float:
    return 2 * _log2(shape.domains) * case.far.tree_step


def _log2(count: int) -> int:
    """The binary logarithm, rounded up."""
    return (count - 1).bit_length()
