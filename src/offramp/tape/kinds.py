"""The numbers in a tape's records, and their names. `docs/tape.md` tells what each one means."""

from __future__ import annotations

import numpy as np

OP, ALLOC, FREE, RESERVE, UNRESERVE, RECORD, WAIT, SYNC_EVENT = range(8)
SYNC_STREAM, SYNC_DEVICE, COLLECTIVE, WORK_WAIT, MARK, HOST, READBACK, CATEGORY = range(8, 16)
KIND_COUNT = 16
MEMORY_KINDS = (ALLOC, FREE, RESERVE, UNRESERVE, CATEGORY)

PHASES = ("other", "forward", "backward", "optimizer", "data", "recompute")
OTHER, FORWARD, BACKWARD, OPTIMIZER, DATA, RECOMPUTE = range(6)

# A category's number in a CATEGORY record is its place here; "other" is said of no block.
CATEGORIES = (
    "other",
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "temporary",
    "communication",
)

BEGIN, END, INSTANT = range(3)  # of a MARK
OPTIMIZER_MARK = "optimizer.step"
BACKWARD_MARK = "backward"

RECORD_TYPE = np.dtype(
    [
        ("kind", "u1"),
        ("phase", "u1"),
        ("device", "<u2"),
        ("stream", "<u4"),
        ("what", "<u4"),
        ("module", "<u4"),
        ("a", "<u8"),
        ("b", "<u8"),
    ]
)
