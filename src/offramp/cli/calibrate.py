"""`offramp calibrate`: measure this machine, and write it as a chip file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HELP = "measure this machine, and write it as a chip file with costs of its own"
EPILOG = """\
The chip file then works wherever a chip's name does:
  offramp calibrate --out this.toml
  offramp rehearse --chip this.toml -- python train.py"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", default="this.toml", metavar="FILE", help="the chip file (default: this.toml)"
    )
    parser.add_argument(
        "--device", default="", metavar="NAME", help="cpu, cuda, ... (default: the accelerator)"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="time collectives of N ranks (default: all devices)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few sizes, few samples: to see that it works"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Measure and write."""
    from offramp import calibrate  # first: PyTorch's loading may bring a virtual chip with it
    from offramp.calibrate import collectives, device
    from offramp.calibrate.writing import cluster_beside
    from offramp.errors import UsageError
    from offramp.launch.files import check_writable

    path = Path(arguments.out)
    if path.suffix != ".toml" or not path.stem:
        raise UsageError(f"--out {arguments.out}: expected a name that ends in .toml")
    check_writable(path)
    chosen = device.choose(arguments.device)
    ranks = collectives.how_many(chosen, arguments.ranks)
    print(f"offramp: measuring {device.title(chosen)} as {chosen.type}", file=sys.stderr)
    start_s = time.monotonic()

    def tell(text: str) -> None:
        taken = time.monotonic() - start_s
        print(f"offramp: {taken:4.0f} s  {text}", file=sys.stderr, flush=True)

    found = calibrate.measure(chosen, quick=arguments.quick, ranks=ranks, told=tell)
    calibrate.write(found, path)
    for name in found.left_out:
        print(f"offramp: not on this device, left out: {name}", file=sys.stderr)
    print(f"{path}: {len(found.curves)} curves, times from {found.clock}")
    print(f"samples of one place are {found.spread:.1%} apart (quartiles, median of all places)")
    print(f"try: offramp rehearse --chip {path} -- python train.py")
    if found.exchange is not None:
        print(
            f"try: offramp rehearse --cluster {cluster_beside(path)} -- "
            f"torchrun --nproc-per-node {ranks} train.py"
        )
    return 0
