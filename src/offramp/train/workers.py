"""Starts the processes of a job on this machine, by torchrun.

Under Slurm or Kubernetes their own launchers do; see `offramp train --submit`.

What ends one process often ends them all, each with the same message or with one about the others'
silence. So they leave their messages in files, and what is told is each one once, and nothing about
silence where something else explains it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from offramp.errors import OfframpError
from offramp.train.submit import SAVE_S, STOP_SIGNALS

MESSAGES = "OFFRAMP_TRAIN_MESSAGES"  # the folder for messages, in the processes' environment


class LostContactError(OfframpError):
    """A collective failed: another process ended, or the network did."""


def leave(error: OfframpError, env: Mapping[str, str] = os.environ) -> bool:
    """Leave the message of what ends this process where the starter looks; whether one does."""
    if MESSAGES not in env:
        return False
    name = "silence" if isinstance(error, LostContactError) else "message"
    (Path(env[MESSAGES]) / f"{name}-{env.get('RANK', 0)}").write_text(str(error), encoding="utf-8")
    return True


def run(count: int, folder: str) -> tuple[int, list[str]]:
    """Run `count` processes of the run in `folder` to their end.

    Returns the status of the first that failed, else 0, and what there is to tell.
    """
    from torch.distributed.run import get_args_parser

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
    logging.disable(logging.ERROR)  # torchrun's account of what is told below
    with tempfile.TemporaryDirectory() as messages:
        os.environ[MESSAGES] = messages
        status, lost = _run(arguments, folder)
        found = {path.name: path.read_text(encoding="utf-8") for path in Path(messages).iterdir()}
    said = [lost] if lost else []
    said += [text for name, text in sorted(found.items()) if name.startswith("message")]
    return status, list(dict.fromkeys(said or [found[name] for name in sorted(found)[:1]]))


def _run(arguments: object, folder: str) -> tuple[int, str]:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import run as torchrun

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
