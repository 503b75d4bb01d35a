"""Files that are made once, and are whole or absent, whoever else makes them at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from offramp.errors import UsageError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock `name` of a folder, alone among all processes; the system frees it at death.

    Gives whether it is held: some network file systems have no locks, and there the last rename
    wins. Errors of the file system inside come out as UsageError that names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("ab") as file:
            held = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                held = False
            yield held
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = "the disk is full"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = "it cannot be written"
        else:
            what = error.strerror or str(error)
        raise UsageError(
            f"{folder}: {what}, and tokenized data belongs there; "
            "give another folder with data.cache"
        ) from error


def temporary(final: Path) -> Path:
    """A new name next to `final`, to write under before the rename."""
    return final.with_name(f".{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def remove_partials(final: Path) -> None:
    """Remove what killed processes left of `final`; only for who holds its lock."""
    for path in final.parent.glob(f".{final.name}.*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def publish(made: Path, final: Path) -> None:
    """Give a finished folder its name; if another process was first, nothing changes."""
    for path in [*made.rglob("*"), made]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    try:
        os.rename(made, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
