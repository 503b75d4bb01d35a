"""The hook that PyTorch calls at `import torch` (entry point group `torch.backends`).

PyTorch turns any `Exception` of such a hook into a RuntimeError about switching hooks off, with
our stack under it. What the user can mend ends the process instead: one line, as a command line
tool would. What is a defect of ours stays an exception with its stack.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

CHIP_VARIABLE = "OFFRAMP_CHIP"
MEMORY_VARIABLE = "OFFRAMP_MEMORY"
ARITH_VARIABLE = "OFFRAMP_ARITH"  # KEY=VALUE, several with commas between
RECORD_VARIABLE = "OFFRAMP_RECORD"


class StopImport(SystemExit):
    """Ends the process at `import torch`; the message is on stderr and, in notebooks, shown."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.code = status


def autoload() -> None:
    """Open the chip named by `OFFRAMP_CHIP`, and record what `OFFRAMP_RECORD` asks for.

    Does nothing, and imports nothing, when both are unset.

    Ends the process with status 2 when the variables cannot be meant, and with status 1 when the
    chip cannot be opened on this machine.
    """
    chip = os.environ.get(CHIP_VARIABLE)
    if chip:
        _open(chip)
    if os.environ.get(RECORD_VARIABLE):
        from offramp.record import part, recorder

        recorder.begin(part.given(os.environ))


def _open(chip: str) -> None:
    from offramp.errors import OfframpError, UsageError
    from offramp.launch.choice import choose

    memory = os.environ.get(MEMORY_VARIABLE)
    arith = os.environ.get(ARITH_VARIABLE)
    try:
        choice = choose(chip, memory, [part for part in (arith or "").split(",") if part])
    except UsageError as error:
        others = ((MEMORY_VARIABLE, memory), (ARITH_VARIABLE, arith))
        given = f"{CHIP_VARIABLE}={chip}" + "".join(f" {n}={v}" for n, v in others if v)
        _stop(f"{given}: {error}", 2)
    try:
        from offramp.launch import player, record
        from offramp.launch.session import Session

        session = Session(choice, _say)
        record.write_at_exit(session.counts, chip=choice.chip.name)
        player.begin(session)
    except OfframpError as error:
        _stop(f"{CHIP_VARIABLE}={chip}: {error}", 2 if isinstance(error, UsageError) else 1)


def _say(message: str) -> None:
    sys.stderr.write(f"offramp: {message}\n")
    sys.stderr.flush()


def _stop(message: str, status: int) -> NoReturn:
    _say(message)
    raise StopImport(message, status)
