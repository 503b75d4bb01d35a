"""Convolutions of images, forward and backward, as curves over the product that each of them is.

m is the places of the result over all images, n its channels, k the channels of the input times the
window. Images have 14 x 14 places; windows are of one place or of 3 x 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from offramp.calibrate.probe import ROUND_BYTES, Axes, Place, Probe, filled, going_round
from offramp.calibrate.timing import Call

SIDE = 14
_IMAGES = (1, 8, 32)
_WINDOWS = {"point": 1, "window": 3}
_CHANNELS_IN, _CHANNELS_OUT = (3, 16, 48, 128), (16, 48, 128)
# Which gradients a backward pass computes: of the input, of the weight, of the bias.
_WANTED = {
    "convolution": None,
    "convolution_backward": [True, True, False],
    "convolution_backward.weight": [False, True, False],
}


def convolutions(dtype: torch.dtype, device: torch.device) -> Iterator[Probe]:
    """The probes of one number format."""
    for form, window in _WINDOWS.items():
        axes: Axes = (
            ("m", tuple(images * SIDE**2 for images in _IMAGES)),
            ("n", _CHANNELS_OUT),
            ("k", tuple(channels * window**2 for channels in _CHANNELS_IN)),
        )
        for name, wanted in _WANTED.items():

            def build(place: Place, window: int = window, wanted: Any = wanted) -> Call:
                return _call(place, window, wanted, dtype, device)

            yield Probe(f"{name}.{form}", dtype, axes, build)


def _call(
    place: Place, window: int, wanted: list[bool] | None, dtype: torch.dtype, device: torch.device
) -> Call:
    images, channels = place["m"] // SIDE**2, place["k"] // window**2
    weight = filled((place["n"], channels, window, window), dtype, device)
    shape = ([1, 1], [window // 2] * 2, [1, 1], False, [0, 0], 1)

    def make() -> tuple[Tensor, Tensor]:
        return (
            filled((images, channels, SIDE, SIDE), dtype, device),
            filled((images, place["n"], SIDE, SIDE), dtype, device),
        )

    def work(given: tuple[Tensor, Tensor]) -> Any:
        x, gradient = given
        if wanted is None:
            return torch.ops.aten.convolution(x, weight, None, *shape)
        return torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape, wanted)

    size = place["m"] * (2 * channels + place["n"]) * dtype.itemsize
    return going_round(make, max(size, ROUND_BYTES // 8), work)
