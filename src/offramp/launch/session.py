"""A chip in this process: opened, CUDA's names led to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from offramp.device import VirtualDevice, open_device
from offramp.errors import UsageError
from offramp.identity import Identity, install
from offramp.launch import counts
from offramp.launch.choice import Choice, choose
from offramp.launch.schema import Snapshot


class Session:
    """An open chip and the names installed for it. As a context, takes the names away at its end.

    The chip itself stays open: PyTorch keeps a device for the life of a process.
    """

    def __init__(self, choice: Choice, announce: Callable[[str], None]) -> None:
        self.choice = choice
        self.device: VirtualDevice = open_device(
            choice.chip,
            count=choice.count,
            memory_bytes=choice.memory_bytes,
            arithmetic=choice.arithmetic,
            announce=announce,
        )
        self.identity: Identity = install(self.device)

    def counts(self) -> Snapshot:
        """Operators, formats, memory and names met so far."""
        return counts.snapshot(self.device, self.identity)

    def close(self) -> None:
        """Put every CUDA name back as it was."""
        self.identity.uninstall()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def use(
    chip: str,
    *,
    memory: str | None = None,
    arith: Sequence[str] = (),
    announce: Callable[[str], None] | None = None,
) -> Session:
    """Make this process meet `chip` wherever it asks for CUDA; for notebooks and tests.

    Args:
        chip: `NAME` or `NAME:COUNT` from the catalogue, or the path of a chip file.
        memory: size of each chip's memory, such as `"2GiB"`; the chip's own when None.
        arith: changes of the chip's arithmetic, such as `["accumulate=fp16"]`.
        announce: told, in one line, before the native core is compiled; silent when None.

    Raises:
        UsageError: the name, count, size or arithmetic cannot be meant, another chip is open, or
            the process has run a backward pass before.
        BuildError: the native core cannot be compiled on this machine.

    Examples:
        >>> import offramp
        >>> session = offramp.use("NAME")  # doctest: +SKIP
        >>> torch.ones(2, device="cuda").device  # doctest: +SKIP
        device(type='cuda', index=0)
    """
    session = Session(choose(chip, memory, arith), announce or (lambda line: None))
    if not session.device.has_backward_thread():
        session.close()
        raise UsageError(
            f"offramp.use({chip!r}) came after a backward pass of this process, and PyTorch gives "
            "threads to devices at the first alone; call it before (in a notebook: after a restart)"
        )
    return session
