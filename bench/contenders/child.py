"""One contender in a process of its own: `python -m contenders.child NAME TASK`."""

from __future__ import annotations

import importlib
import json
import sys
import warnings

from contenders.gate import Ended, Gate, Task

MODULES = {"offramp": "ours", "Trainer": "trainer", "litgpt": "lit", "plain PyTorch": "plain"}


def main() -> None:
    name, text = sys.argv[1:]
    warnings.simplefilter("ignore")
    values = json.loads(text)
    task = Task(**values | {"betas": tuple(values["betas"])})
    gate = Gate()
    contender = importlib.import_module(f"contenders.{MODULES[name]}")
    try:
        contender.train(task, gate)
    except Ended:
        return


if __name__ == "__main__":
    main()
