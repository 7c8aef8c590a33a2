"""Split examples so that no family, pair or repeated text sits on two sides.  Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trainer.detectors.examples import Example, Split


def groups(examples: Sequence[Example]) -> list[int]:
    """Group number of each example: connected components over shared keys (union-find with path halving)."""
    parent = list(range(len(examples)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    seen: dict[str, int] = {}
    for index, example in enumerate(examples):
        for name in example.keys:
            if name in seen:
                parent[root(index)] = root(seen[name])
            else:
                seen[name] = index
    return [root(index) for index in range(len(examples))]


def assign(examples: Iterable[Example], seed: int, validation: float, test: float) -> list[Example]:
    """Give each group one side by a hash of its smallest key and the seed, so that new data moves no old group.

    (A group that new data joins to another moves as a whole.)
    """
    rows = list(examples)
    members = groups(rows)
    names: dict[int, str] = {}
    for row, group in zip(rows, members, strict=True):
        smallest = min(row.keys)
        names[group] = min(names.get(group, smallest), smallest)
    return [
        replace(row, split=_side(names[group], seed, validation, test))
        for row, group in zip(rows, members, strict=True)
    ]


def _side(name: str, seed: int, validation: float, test: float) -> Split:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < test:
        return "test"
    return "validation" if point < test + validation else "train"
