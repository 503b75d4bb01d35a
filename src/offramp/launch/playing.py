"""Runs the processes of a rehearsal: several at a time, each with a limit, none left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offramp.launch.command import Prepared

POLL_S = 0.02
MOST_SAID = 16 << 20  # bytes of what a process says; beyond them its earlier words are dropped


@dataclass(frozen=True)
class Ended:
    """One process at its end. `status` is None where it was ended at the limit."""

    key: int
    status: int | None
    said: str


class Child(Protocol):
    """A process that was started: of subprocess, or a fork."""

    @property
    def pid(self) -> int:
        """Its number, which is also that of its session."""
        ...

    def poll(self) -> int | None:
        """Its status, negative for a signal; None while it runs."""
        ...

    def wait(self) -> int:
        """Its status, once it has one."""
        ...


Start = Callable[[Prepared, Path], Child]


@dataclass(frozen=True)
class _Running:
    key: int
    child: Child
    path: Path
    until_s: float

    def is_over(self) -> bool:
        return self.child.poll() is not None or time.monotonic() > self.until_s

    def end(self) -> Ended:
        """End it and all that it started, which is a session of its own."""
        status = self.child.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        return Ended(self.key, status, self.path.read_text(encoding="utf-8", errors="replace"))

    def forget_early_words(self) -> None:
        if self.path.stat().st_size > MOST_SAID:
            os.truncate(self.path, 0)


def run_all(
    keys: Sequence[int],
    prepare: Callable[[int], Prepared],
    folder: Path,
    limit_s: float,
    heard: Callable[[Ended], None],
    *,
    start: Start | None = None,
    wanted: Callable[[], Iterable[int]] = tuple,
) -> None:
    """Run a command for each key, as many at a time as this machine has cores.

    heard    gets each ending; where it raises, and on any signal, the others are ended
    start    starts a command whose words are added to a file, in a session of its own
    wanted   keys that running commands wait for: they are run at once, beside these
    """
    waiting, running = list(keys), list[_Running]()
    begun = set[int]()

    def begin(key: int) -> None:
        path = folder / f"said-{key}.txt"
        child = (start or spawn)(prepare(key), path)
        running.append(_Running(key, child, path, time.monotonic() + limit_s))
        begun.add(key)

    try:
        while waiting or running:
            while waiting and len(running) < max(1, os.cpu_count() or 1):
                begin(waiting.pop(0))
            for key in sorted(set(wanted()) - begun):
                begin(key)
            waiting = [key for key in waiting if key not in begun]
            time.sleep(POLL_S)
            for one in running:
                one.forget_early_words()
            for one in [each for each in running if each.is_over()]:
                running.remove(one)
                heard(one.end())
    finally:
        for one in running:
            one.end()


def spawn(prepared: Prepared, said: Path) -> Child:
    """Start a command whose words are added to a file, in a session of its own."""
    with said.open("ab") as file:
        return subprocess.Popen(
            prepared.command,
            env=dict(prepared.env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
