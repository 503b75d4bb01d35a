"""Letters between the played ranks of a rehearsal: `native/letters.h` writes and reads them.

Whole numbers and bytes that ranks send each other decide what a program does next, such as the
shapes that the stages of a pipeline agree on. So a rank that waits for them has its sender played
at the same time.
"""

from __future__ import annotations

from pathlib import Path

_WANTED, _ENDED = "wanted-", "ended-"


class Letters:
    """The folder that the players of one rehearsal share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def wanted(self) -> set[int]:
        """The ranks for whose letters others wait, or have waited."""
        return {int(path.name[len(_WANTED) :]) for path in self._folder.glob(f"{_WANTED}*[0-9]")}

    def end(self, rank: int) -> None:
        """Say that a rank writes no more letters."""
        (self._folder / f"{_ENDED}{rank}").touch()
