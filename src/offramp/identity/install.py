"""Putting the names in place, and taking them away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offramp.identity import (
    compilers,
    cuda,
    dataparallel,
    distributed,
    legacy,
    nvidia,
    own_name,
    packages,
    precision,
    profilers,
)
from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

_PARTS = (cuda, own_name, legacy, compilers, packages, precision, profilers)


class Identity:
    """One installation: what was met so far, and the way back."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.counts = Tally()
        self._patches = Patches()
        try:
            for part in _PARTS:
                part.install(runtime, self.counts, self._patches)
            distributed.install(runtime, self._patches)
            dataparallel.install(runtime, self._patches)
            nvidia.install(runtime, self.counts, self._patches)  # what the others left
        except BaseException:
            self._patches.undo()
            raise

    def install_part(self, part: Callable[[Patches], None]) -> None:
        """Make further changes, which `uninstall` puts back as well."""
        part(self._patches)

    def record(self) -> dict[str, list[dict[str, Any]]]:
        """Names met, refusals, defaults and compilations, as plain data."""
        return self.counts.record()

    def uninstall(self) -> None:
        """Put every name back as it was. The device stays: PyTorch keeps it for the process."""
        self._patches.undo()


def install(runtime: Runtime) -> Identity:
    """Make CUDA's names answer for `runtime`, in this process and in every thread of it."""
    return Identity(runtime)
