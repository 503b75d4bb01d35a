"""The file of a recording: frames, each with its length and checksum, appended and flushed.

    magic, then frames: mark "FRM1", payload bytes (u32), CRC-32 of the payload (u32), payload
    payload: bytes of the head (u32), the head as JSON, then the arrays' bytes in the head's order

A process that is killed leaves whole frames and at most one torn one; reading stops before it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import UsageError

MAGIC = b"OFFRAMP RECORDING 1\n"
_MARK = b"FRM1"
_FRAME = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")
MOST_PAYLOAD = (1 << 32) - 1


@dataclass(frozen=True)
class Frame:
    """One frame: what it is of, its JSON, and its arrays by name."""

    kind: str
    head: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def pack(frame: Frame) -> bytes:
    """The frame as it stands in the file. Raises ValueError where it is above 4 GiB."""
    blobs, table = [], []
    for name, array in frame.arrays.items():
        whole = np.ascontiguousarray(array)
        blobs.append(whole.tobytes())
        table.append([name, whole.dtype.str, list(array.shape)])
    head = json.dumps({"kind": frame.kind, "head": frame.head, "arrays": table}).encode()
    payload = b"".join([_LENGTH.pack(len(head)), head, *blobs])
    if len(payload) > MOST_PAYLOAD:
        raise ValueError(f"a frame of {len(payload):,} bytes; at most {MOST_PAYLOAD:,}")
    return _FRAME.pack(_MARK, len(payload), zlib.crc32(payload)) + payload


class FrameWriter:
    """Appends frames to a new file. Raises FileExistsError where there is one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._file.write(MAGIC)
        self._file.flush()
        self.written_bytes = len(MAGIC)

    def write(self, frame: Frame) -> None:
        """Append a frame: once this returns, a killed process does not lose it."""
        data = pack(frame)
        self._file.write(data)
        self._file.flush()
        self.written_bytes += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_recording(path: Path) -> bool:
    """Whether the file begins as a recording does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_frames(path: Path) -> tuple[list[Frame], str]:
    """The whole frames of a file, and what is wrong with its end (empty: nothing).

    Raises UsageError where there is no such file, or it is no recording.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the recording {path}: {error.strerror}") from error
    if not data.startswith(MAGIC):
        raise UsageError(
            f"{path} is no recording; expected a file that `offramp record --out` wrote"
        )
    frames: list[Frame] = []
    at = len(MAGIC)
    while at < len(data):
        torn = f"cut off after {at:,} of {len(data):,} bytes"
        if at + _FRAME.size > len(data):
            return frames, torn
        mark, length, checksum = _FRAME.unpack_from(data, at)
        begin = at + _FRAME.size
        payload = data[begin : begin + length]
        if mark != _MARK or (len(payload) == length and zlib.crc32(payload) != checksum):
            return frames, f"damaged after {at:,} of {len(data):,} bytes"
        if len(payload) < length:
            return frames, torn
        try:
            frames.append(_unpack(payload))
        except (ValueError, KeyError, TypeError, struct.error):
            return frames, f"not understood after {at:,} of {len(data):,} bytes"
        at = begin + length
    return frames, ""


def _unpack(payload: bytes) -> Frame:
    (length,) = _LENGTH.unpack_from(payload)
    at = _LENGTH.size + length
    told = json.loads(payload[_LENGTH.size : at])
    arrays = {}
    for name, dtype, shape in told["arrays"]:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(payload, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return Frame(str(told["kind"]), told["head"], arrays)
