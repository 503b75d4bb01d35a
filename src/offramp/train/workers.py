"""Starts the processes of a job on this machine, by torchrun: `python -m offramp.train.workers`.

    python -m offramp.train.workers COUNT RUN_FOLDER

Under Slurm or Kubernetes their own launchers start the processes; see `offramp train --submit`.
"""

from __future__ import annotations

import sys

STOP_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
SAVE_S = 600  # how long processes may take to save after a signal


def main(count: str, folder: str) -> int:
    """Run `count` processes to their end; the status of the first that failed, else 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    arguments = get_args_parser().parse_args(
        [
            "--standalone",
            f"--nproc-per-node={count}",
            f"--shutdown-timeout={SAVE_S}",
            f"--signals-to-handle={STOP_SIGNALS}",
            "--monitor-interval=0.2",
            "--module",
            "offramp",
            "train",
            "--resume",
            folder,
        ]
    )
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            print(
                f"offramp: process {rank} was lost: killed by signal "
                f"{-first.exitcode}; go on from the last checkpoint with: "
                f"offramp train --resume {folder}",
                file=sys.stderr,
            )
            return 128 - first.exitcode
        return int(first.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
