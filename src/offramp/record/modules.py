"""The modules that a program calls and their weights, under the names that the model has for them.

A root is a module that is called from outside of any that is known. The first root with modules in
it names them as its own program does; the names of others begin with their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from offramp.names import Names


class Modules:
    """All modules and weights that were met, by the number of their name."""

    def __init__(self) -> None:
        self.names = Names()
        self._roots: list[nn.Module] = []
        self._numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._prefixes: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._weights: dict[int, tuple[int, Tensor]] = {}  # by identity

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._numbers

    def number(self, module: nn.Module) -> int:
        """The number of a module's name; -1: it is not known."""
        return self._numbers.get(module, -1)

    def weight(self, tensor: Tensor) -> int:
        """The number of a parameter's name; -1: it is in no module that is known."""
        return self._weights.get(id(tensor), (-1,))[0]

    def parameters(self) -> Iterator[tuple[int, Tensor]]:
        """Every parameter that is known, with the number of its name."""
        yield from self._weights.values()

    def roots(self) -> Iterator[tuple[nn.Module, str]]:
        """Every root with its prefix."""
        for root in self._roots:
            yield root, self._prefixes[root]

    def prefix(self, module: nn.Module) -> str:
        """What the names of all in a known module begin with."""
        return self._prefixes[module]

    def add_root(self, root: nn.Module) -> None:
        """Take in a root that is new; `learn` names what is in it."""
        title, taken = type(root).__name__, {prefix for _, prefix in self.roots()}
        prefix = "" if "" not in taken and any(root.children()) else f"{title}."
        count = 2
        while prefix in taken:
            prefix, count = f"{title}-{count}.", count + 1
        self._roots.append(root)
        self._prefixes[root] = prefix

    def learn(self, outer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Name what is new in a root, or in another module that is known: those modules."""
        prefix, title = self._prefixes[outer], f"<{type(outer).__name__}>"
        for path, module in outer.named_modules():
            if module not in self._numbers:
                name = (prefix + path).rstrip(".") or title
                self._numbers[module] = self.names.number(name)
                self._prefixes.setdefault(module, f"{prefix}{path}.")
                yield module, name
        for name, parameter in outer.named_parameters():
            self._weights[id(parameter)] = (self.names.number(prefix + name), parameter)
