"""What a detailed step is made of: one row for each tensor that was looked at, in order of time."""

from __future__ import annotations

WEIGHT = 0  # a parameter or buffer before the step
INPUT = 1  # of a module
OUTPUT = 2  # of a module
LOSS = 3  # what `backward` was called on
GRADIENT = 4  # of a module's input or output, as it came back
WEIGHT_GRADIENT = 5  # of a parameter, as one backward pass made it
STEP_GRADIENT = 6  # of a parameter, as the optimizer met it
UPDATED = 7  # a parameter after the optimizer's step
UNCLIPPED = 8  # the gradient of a parameter as `clip_grad_norm_` met it
WORDS = (
    "weight",
    "input",
    "output",
    "loss",
    "gradient",
    "weight gradient",
    "gradient at the optimizer",
    "updated weight",
    "gradient before clipping",
)
# Columns of the table `rows`, int64.
COLUMNS = ("what", "name", "call", "place", "owner", "link", "of", "format", "shape")
FORMATS = ("float64", "float32", "bfloat16", "float16", "float8", "integer")
EPSILONS = (2.0**-52, 2.0**-23, 2.0**-7, 2.0**-10, 2.0**-3, 0.0)
# The least normal number of each, of 8-bit ones that of e4m3.
LEAST_NORMAL = (2.0**-1022, 2.0**-126, 2.0**-126, 2.0**-14, 2.0**-6, 0.0)
