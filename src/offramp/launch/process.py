"""Runs one command in the foreground as if it had been started directly.

The command shares the process group and the terminal of offramp, so that job control, Ctrl-C and
signals to the group work as without offramp. Then the kernel has already given the command each
signal that was meant for the group, and offramp must pass on only those that it received alone:

- a signal that the kernel itself sent (a key, a hang-up) went to the whole foreground group;
- a signal from a process may have gone to the group or to offramp alone, and nothing in it tells
  which. A witness, a process that only waits in the same group, tells: it receives the former.

What cannot be passed on, SIGKILL, ends the command as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
WITNESS_GRACE_S = 0.2  # how long the witness may take to tell on a busy machine
WITNESS_MEMORY_S = 1.0  # what it told before is about an earlier signal
_PR_SET_PDEATHSIG = 1
_SIGHTING = struct.Struct("@id")


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status as a shell tells it, and the signal that killed it."""

    exit_status: int
    signal: str | None
    wall_s: float


class CannotStartError(OSError):
    """The system refused to start the command."""


def run(command: Sequence[str], env: Mapping[str, str]) -> Ending:
    """Run `command` to its end and pass signals on, each exactly once.

    Call it from the main thread of a process that has no other children. Raises CannotStartError.
    """
    # A signal that was set to be ignored (nohup) stays ignored here and in the command.
    heeded = {s for s in PASSED_ON if signal.getsignal(s) != signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watched = heeded | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    started_s = time.monotonic()
    witness = Witness(heeded)
    try:
        child = _start(command, env, before)
        while child.poll() is None:
            received = signal.sigwaitinfo(watched)
            if received.si_signo == signal.SIGCHLD or child.poll() is not None:
                continue
            reached_the_group = witness.saw(received.si_signo)
            if not (reached_the_group or received.si_code > 0):
                child.send_signal(received.si_signo)
        status = child.returncode
    finally:
        witness.dismiss()
        while signal.sigtimedwait(watched, 0):  # they were meant for the command, which is gone
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    killed_by = signal.Signals(-status).name if status < 0 else None
    return Ending(128 - status if status < 0 else status, killed_by, time.monotonic() - started_s)


def _start(
    command: Sequence[str], env: Mapping[str, str], mask: set[int | signal.Signals]
) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def become_the_command() -> None:
        die_with(parent)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        # Nothing else runs in this process, so that code between fork and exec is safe.
        # Open files are inherited as without offramp (`<(...)`, a make job server).
        return subprocess.Popen(command, env=env, close_fds=False, preexec_fn=become_the_command)
    except OSError as error:
        raise CannotStartError(error.errno, error.strerror, command[0]) from error


class Witness:
    """A process in this process group that only tells which signals reach it."""

    def __init__(self, signals: set[signal.Signals]) -> None:
        parent = os.getpid()
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _tell_signals(signals, writer, parent)
        os.close(writer)
        os.set_blocking(self._reader, False)
        self._seen: list[tuple[int, float]] = []  # signal number, when

    def saw(self, number: int) -> bool:
        """Whether signal `number` reached the witness as well, just now or within the grace."""
        asked_s = time.monotonic()
        while True:
            with contextlib.suppress(BlockingIOError):
                told = os.read(self._reader, 64 * _SIGHTING.size)
                self._seen += [(n, at) for n, at in _SIGHTING.iter_unpack(told)]
            self._seen = [(n, at) for n, at in self._seen if at > asked_s - WITNESS_MEMORY_S]
            for sighting in self._seen:
                if sighting[0] == number:
                    self._seen.remove(sighting)
                    return True
            if time.monotonic() >= asked_s + WITNESS_GRACE_S:
                return False
            time.sleep(0.001)

    def dismiss(self) -> None:
        """End the witness."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._reader)


def _tell_signals(signals: set[signal.Signals], writer: int, parent: int) -> None:
    """The life of the witness: it ends when its parent does, and holds no file of the parent's."""
    try:
        die_with(parent)
        os.dup2(writer, 3)
        os.closerange(0, 3)
        os.closerange(4, 65536)
        while True:
            received = signal.sigtimedwait(signals, 1)
            if received is not None:
                os.write(3, _SIGHTING.pack(received.si_signo, time.monotonic()))
            if os.getppid() != parent:
                break
    finally:
        os._exit(0)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, also when it is killed outright."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
