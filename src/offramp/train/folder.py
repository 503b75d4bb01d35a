"""The run folder: what a run leaves, and what it takes to repeat it or go on."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from offramp import __version__
from offramp.errors import UsageError
from offramp.launch.record import write_json
from offramp.train import reading
from offramp.train.job import Job

# What may differ between a run and its continuation: everything that does not decide the weights.
FREE = ("out", "chip", "layout", "evaluate", "sample", "checkpoint", "watch", "metrics")
FREE_KEYS = (
    *("train.minutes", "train.steps", "train.compile", "train.eager_random", "train.loss_chunk"),
    "data.cache",
)
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "peft", "pyarrow")


@dataclass(frozen=True)
class RunFolder:
    """The names in a run folder."""

    path: Path

    @property
    def job(self) -> Path:
        """The complete job."""
        return self.path / "job.toml"

    @property
    def versions(self) -> Path:
        """What it ran on, one entry a start."""
        return self.path / "versions.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, evaluations and samples."""
        return self.path / "metrics.jsonl"

    @property
    def plan(self) -> Path:
        """How many steps a run by the clock settled on."""
        return self.path / "plan.json"

    @property
    def summary(self) -> Path:
        """How it ended."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.path / "model"

    @property
    def launches(self) -> Path:
        """What the processes on virtual chips recorded, one folder a start."""
        return self.path / "launches"

    def lock(self) -> IO[str]:
        """Keep others out while the returned file is open. Raises UsageError."""
        file = open(self.path / ".lock", "w")  # noqa: SIM115 -- open for as long as the run lasts
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UsageError(
                f"another process trains in {self.path}; give another --out"
            ) from error
        return file

    def note_versions(self, chip: Mapping[str, Any]) -> None:
        """Add what this start runs on to `versions`."""
        starts = json.loads(self.versions.read_text()) if self.versions.exists() else {"starts": []}
        starts["starts"].append(
            {
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "offramp": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": {name: v for name in _PACKAGES if (v := _version(name))},
                "chip": dict(chip),
                "command": sys.argv,
            }
        )
        write_json(self.versions, starts)


def create(job: Job, *, parent: Path = Path("runs")) -> RunFolder:
    """The folder of a new run, with its job, or of the run that `job.out` holds already.

    Raises UsageError where it cannot be written, or holds a run of another job.
    """
    if job.out:
        path = Path(job.out)
    else:
        name = Path(job.model.folder).name if job.model.folder else job.model.preset
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
        taken = (parent / f"{stem}{'' if n == 1 else f'-{n}'}" for n in range(1, 10_000))
        path = next(p for p in taken if not p.exists())
    folder = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if folder.job.exists():
            check_same(folder, job)
        scratch = folder.job.with_suffix(f".{platform.node()}-{os.getpid()}.tmp")
        scratch.write_text(reading.write(reading.change(job, {"out": str(path)})))
        scratch.replace(folder.job)
    except OSError as error:
        raise UsageError(
            f"cannot write the run folder {path}: {error.strerror}; give another with --out"
        ) from error
    return folder


def open_folder(path: Path) -> tuple[RunFolder, Job]:
    """A run folder that exists, and its job. Raises UsageError."""
    folder = RunFolder(path)
    if not folder.job.is_file():
        raise UsageError(f"{path} is no run folder: it has no job.toml")
    return folder, reading.read(Job, folder.job)


def check_same(folder: RunFolder, job: Job) -> None:
    """Refuse a job whose weights could not be those of the run in `folder`. Raises UsageError."""
    before = _deciding(reading.read(Job, folder.job))
    now = _deciding(job)
    changed = [
        f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if now[key] != before[key]
    ]
    if changed:
        raise UsageError(
            f"{folder.path} holds a run of another job: {'; '.join(changed[:3])}"
            f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}; give another --out"
        )


def _deciding(job: Job) -> dict[str, Any]:
    sections = {k: v for k, v in reading.plain(job).items() if k not in FREE}
    flat = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.items()
    }
    return {key: value for key, value in flat.items() if key not in FREE_KEYS}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
