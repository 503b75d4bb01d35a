"""Checkpoints that are complete or absent: asynchronous, checksummed, for any layout.

A checkpoint is a folder `step-00000100`. It is written under another name, by PyTorch's distributed
checkpoint, while training goes on; every process then takes the SHA-256 of its files; the first one
writes them into `manifest.json`, renames the folder, and removes the oldest. So a process that is
killed leaves at most a folder that is not looked at, and a file that changed later is found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save

from offramp import units
from offramp.errors import OfframpError
from offramp.train.world import World

MANIFEST = "manifest.json"
PARTIAL = ".partial"
SCHEMA = 1
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(OfframpError):
    """A checkpoint that cannot be written, read or used; the message says which and why."""


@dataclass(frozen=True)
class Found:
    """A complete checkpoint and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """The plain part of the state, as it was given to `save`."""
        return cast(dict[str, Any], self.manifest["state"])


class Checkpoints:
    """The checkpoints of one run: `keep` of them stay (0: all)."""

    def __init__(self, folder: Path, world: World, *, keep: int = 0) -> None:
        self.folder, self.keep = folder, keep
        self._world = world
        # Its own group: checkpoints are written while training uses the others.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; the tensors may change as soon as this returns.

        state   plain data (JSON), the same in every process

        Call `finished` or `wait` before the next. Raises CheckpointError.
        """
        assert self._pending is None, "the last checkpoint has not been waited for"
        partial = self.folder / f"step-{step:08d}{PARTIAL}"
        problem = ""
        if self._world.is_main:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            except OSError as error:
                problem = _cannot_write(partial, error)
        if problem := self._gather({"problem": problem})[0]["problem"]:
            raise CheckpointError(problem)
        try:
            writing = async_save(
                dict(tensors),
                storage_writer=FileSystemWriter(partial),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except (Exception, CheckpointException) as error:
            raise CheckpointError(_cannot_write(partial, error)) from error
        assert isinstance(writing, Future)
        self._pending = self._thread.submit(self._publish, writing, partial, step, dict(state))

    def finished(self) -> Path | None:
        """The checkpoint that was begun, once it is complete here. Raises CheckpointError."""
        if self._pending is None or not self._pending.done():
            return None
        return self.wait()

    def wait(self) -> Path | None:
        """Wait for the checkpoint that was begun, if any. Raises CheckpointError."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown(wait=True)

    def _publish(
        self, writing: Future[Any], partial: Path, step: int, state: dict[str, Any]
    ) -> Path:
        mine: dict[str, Any] = {}
        try:
            writing.result()
            for path in sorted(partial.glob(f"__{self._world.rank}_*.distcp")):
                mine[path.name] = _fingerprint(path)
        except (Exception, CheckpointException) as error:
            mine = {"error": _cannot_write(partial, error)}
        parts = self._gather(mine)
        errors = [part["error"] for part in parts if "error" in part]
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        if not errors and self._world.is_main:
            try:
                files = {name: mark for part in parts for name, mark in part.items()}
                files[".metadata"] = _fingerprint(partial / ".metadata")
                self._complete(partial, final, {"step": step, "files": files, "state": state})
            except OSError as error:
                errors = [_cannot_write(partial, error)]
        errors = [e for part in self._gather({"errors": errors}) for e in part["errors"]]
        if errors:
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(errors[0])
        return final

    def _complete(self, partial: Path, final: Path, manifest: dict[str, Any]) -> None:
        with open(partial / MANIFEST, "w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, **manifest}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # the step was saved before the run went back to an earlier one
            shutil.rmtree(final)
        partial.rename(final)
        _sync(self.folder)
        complete = list(self._complete_folders())
        for old in complete[self.keep :] if self.keep else ():
            shutil.rmtree(old, ignore_errors=True)

    def _complete_folders(self) -> Iterator[Path]:
        """Complete checkpoints, the newest first."""
        if self.folder.is_dir():
            found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
            yield from sorted(found, reverse=True)

    def find(self) -> tuple[Found | None, list[str]]:
        """The newest checkpoint that is undamaged, and what is wrong with newer ones.

        Every process must call it; they share the work of reading.
        """
        flaws: list[str] = []
        for path in self._share([str(p) for p in self._complete_folders()]):
            flaw, manifest = self._examine(Path(path))
            if flaw is None:
                return Found(Path(path), manifest), flaws
            flaws.append(f"checkpoint {path} is damaged: {flaw}")
        return None, flaws

    def _examine(self, path: Path) -> tuple[str | None, dict[str, Any]]:
        manifest: dict[str, Any] = {}
        flaw = None
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            names = sorted(manifest["files"])
            for name in names[self._world.rank :: self._world.size]:
                if _fingerprint(path / name) != manifest["files"][name]:
                    flaw = f"{name} does not have the checksum it was written with"
        except FileNotFoundError as error:
            flaw = f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            flaw = f"{MANIFEST} cannot be read: {error!r}"
        flaws = [part["flaw"] for part in self._gather({"flaw": flaw}) if part["flaw"]]
        return (flaws[0] if flaws else None), manifest

    def load(self, found: Found, tensors: dict[str, Tensor]) -> None:
        """Fill the tensors in place, whatever layout wrote them. Raises CheckpointError."""
        reader = FileSystemReader(found.path)
        stored = {
            name: tuple(entry.size)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        for name, tensor in tensors.items():
            if stored.get(name) != tuple(tensor.shape):
                there = f"has it as {stored[name]}" if name in stored else "has no such tensor"
                raise CheckpointError(
                    f"checkpoint {found.path} is of another model or optimizer: the job's "
                    f"{name} is {tuple(tensor.shape)}, the checkpoint {there}"
                )
        load_tensors(
            tensors,
            storage_reader=reader,
            process_group=self._group,
            no_dist=self._group is None,
        )

    def _gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        if self._group is None:
            return [mine]
        parts: list[Any] = [None] * self._world.size
        dist.all_gather_object(parts, mine, group=self._group)
        return parts

    def _share(self, value: list[str]) -> list[str]:
        """The first process's value."""
        return cast(list[str], self._gather({"value": value})[0]["value"])


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: BaseException) -> str:
    """One line: the system's reason where one is found behind PyTorch's, and the space left."""
    reason = next((e.strerror for e in _behind(error) if isinstance(e, OSError) and e.strerror), "")
    if not reason:
        lines = str(error).strip().splitlines()
        reason = lines[-1] if lines else repr(error)
    try:
        free = units.format_bytes(shutil.disk_usage(path.parent).free)
    except OSError:
        return f"cannot write the checkpoint {path}: {reason}"
    return f"cannot write the checkpoint {path}: {reason} ({free} are free there)"


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, in any rank."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, CheckpointException):
            waiting += [failure for failure, _ in one.failures.values()]
        waiting += [e for e in (one.__cause__, one.__context__) if e is not None]
