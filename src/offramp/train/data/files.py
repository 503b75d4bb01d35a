"""Which files a job's sources are, in a stable order, and what each one is read as.

In a folder, 'auto' takes text (TEXT_SUFFIXES), JSON lines, Parquet and `datasets` folders; hidden
and other files are counted, not read. A format by name takes the files that can have it: 'text'
every file. Token binaries are taken from a folder only by name: too much else ends in .bin.
"""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from offramp.errors import UsageError, nearest
from offramp.train.job import DataSection

_TEXT = """
    .adoc .asm .bash .bib .c .cc .cfg .cjs .clj .cmake .conf .cpp .cs .css .csv .cu .cuh .cxx
    .dart .diff .el .erl .ex .f .f90 .go .graphql .h .hh .hpp .hs .htm .html .ini .java .jl .js
    .jsx .kt .less .lisp .log .lua .m .markdown .md .mjs .ml .org .pas .patch .php .pl .proto
    .ps1 .py .pyi .pyx .r .rb .rs .rst .s .scala .scss .sh .sql .srt .svelte .swift .tcl .tex
    .text .toml .ts .tsv .tsx .txt .vb .vim .vue .xml .yaml .yml .zig
"""
TEXT_SUFFIXES = frozenset(_TEXT.split())
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
TOKEN_SUFFIXES = (".bin", ".npy")
STDLIB = "stdlib"
# What distributions package apart, tests, and tables of numbers: not on every machine, or not text.
_LEAVES = """
    test tests idle_test site-packages dist-packages __pycache__ idlelib turtledemo lib2to3
    tkinter distutils ensurepip venv encodings
"""
_STDLIB_LEAVES = frozenset(_LEAVES.split())


@dataclass
class Tally:
    """What was met and not trained on; `first_bad` is the first bad line and its reason."""

    left: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""

    def bad(self, reason: str) -> None:
        """Count a bad line."""
        self.left["bad lines"] += 1
        self.first_bad = self.first_bad or reason

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.left.items()))
        return counts + (f" (the first: {self.first_bad})" if self.first_bad else "")


@dataclass(frozen=True)
class SourceFile:
    """One file (or `datasets` folder); `key` names it however the folders above are called."""

    path: Path
    key: str
    format: str

    def identity(self) -> list[tuple[str, int, int]]:
        """Path, size and time of change, which differ where the contents do."""
        folder = self.path.is_dir()
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) if folder else [self.path]
        try:
            stats = [(path, path.stat()) for path in files]
        except OSError as error:
            raise unreadable(self.path, error) from error
        return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def find(data: DataSection, tally: Tally) -> list[SourceFile]:
    """The files of `data.source`, in the order given and sorted in folders. Raises UsageError."""
    found: list[SourceFile] = []
    for source in data.source:
        before = len(found)
        path = Path(source).expanduser()
        if source == STDLIB:
            found += _stdlib()
        elif path.is_dir():
            try:
                found += _in_folder(path, path, data.format, tally)
            except OSError as error:
                raise unreadable(path, error) from error
        elif path.exists():
            found.append(SourceFile(path, path.name, _format_of(path, data.format)))
        else:
            parent = path.parent
            near = nearest(path.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else ""
            raise UsageError(f"data.source: {source}: no such file or folder{near}")
        if len(found) == before:
            left = f"; left out: {tally}" if tally.left else ""
            raise UsageError(
                f"data.source: {source}: no file to train on{left}; "
                "expected text, JSON lines, Parquet or a datasets folder, or name data.format"
            )
    return found


def unreadable(path: Path, error: OSError) -> UsageError:
    """The refusal of a file that the system does not let us read."""
    return UsageError(f"{path}: cannot be read ({error.strerror or error})")


def _stdlib() -> list[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [n for n in inner if n not in _STDLIB_LEAVES and not n.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfig"):
                path = Path(folder, name)
                found.append(SourceFile(path, "/".join(path.relative_to(root).parts), "text"))
    return sorted(found, key=lambda file: file.key)


def _in_folder(folder: Path, root: Path, format: str, tally: Tally) -> Iterator[SourceFile]:
    if format in ("auto", "datasets") and _is_dataset(folder):
        yield SourceFile(folder, _key(folder, root), "datasets")
        return
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.name.startswith((".", "__pycache__")):
            tally.left["hidden files or folders"] += 1
        elif path.is_dir():
            yield from _in_folder(path, root, format, tally)
        elif not path.is_file():
            tally.left["other files"] += 1
        elif found := _taken(path, format):
            if found == "text" and is_binary(path):
                tally.left["binary files"] += 1
            else:
                yield SourceFile(path, _key(path, root), found)
        else:
            tally.left["other files"] += 1


def is_binary(path: Path) -> bool:
    """Whether a file's first 8 KiB hold a zero byte, as text does not."""
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def _is_dataset(folder: Path) -> bool:
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def _key(path: Path, root: Path) -> str:
    return "/".join(path.relative_to(root).parts) or root.name


def _by_name(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(JSONL_SUFFIXES):
        return "jsonl"
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    if name.endswith(TOKEN_SUFFIXES):
        return "tokens"
    return "text" if path.suffix.lower() in TEXT_SUFFIXES else ""


def _taken(path: Path, format: str) -> str:
    """The format to read a folder's file as; empty: it is not taken."""
    by_name = _by_name(path)
    if format == "text":
        return format
    if format == "auto":
        return "" if by_name == "tokens" else by_name
    return format if by_name == format else ""


def _format_of(path: Path, format: str) -> str:
    """The format to read a file as that is named itself. Raises UsageError."""
    if format == "datasets":
        raise UsageError(f"{path}: data.format is 'datasets', and this is a file, not a folder")
    if format != "auto":
        return format
    if path.suffix.lower() == ".json":
        raise UsageError(
            f"{path}: JSON, which may be one value or one a line; set data.format to 'jsonl' where "
            "each line is an object, or to 'text' to train on it as it stands"
        )
    if path.suffix.lower() == ".arrow":
        raise UsageError(f"{path}: part of a datasets folder; give the folder {path.parent}")
    return _by_name(path) or "text"
