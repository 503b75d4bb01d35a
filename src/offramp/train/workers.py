"""Starts the processes of a job on this machine, by torchrun.

Under Slurm or Kubernetes their own launchers do; see `offramp train --submit`.
"""

from __future__ import annotations

from offramp.train.submit import SAVE_S, STOP_SIGNALS


def run(count: int, folder: str) -> tuple[int, str]:
    """Run `count` processes of the run in `folder` to their end.

    Returns the status of the first that failed, else 0, and a line to tell, or nothing.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    arguments = get_args_parser().parse_args(
        [
            "--standalone",
            f"--nproc-per-node={count}",
            f"--shutdown-timeout={SAVE_S}",
            f"--signals-to-handle={STOP_SIGNALS}",
            "--monitor-interval=0.2",
            *("--module", "offramp", "train", "--resume", folder),
        ]
    )
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode >= 0:
            return int(first.exitcode), ""
        return 128 - first.exitcode, (
            f"process {rank} was lost: killed by signal {-first.exitcode}; go on from the last "
            f"checkpoint with: offramp train --resume {folder}"
        )
    except SignalException as error:
        return 128 + int(error.sigval), ""
    return 0, ""
