"""Tapes: what one rank did, in order; the clock that replays them, and what they tell.

tape.py      the file: read, write
kinds.py     numbers and names in records
prices.py    what the clock asks for
clock.py     one rank's lanes         overlap.py  compute beside collectives
play.py      several ranks            meeting.py  where they wait for each other
steps.py     the program's steps      split.py    what their time went to
modules.py   by module and operator   memory.py   what held the memory
trace.py     a timeline for Perfetto  summary.py  the result as plain data
"""

from offramp.tape.clock import QUEUE_DEPTH, Clock, Mark
from offramp.tape.memory import Blocks, Memory, measure_memory
from offramp.tape.modules import Breakdown, ModuleTime, OperatorTime, break_down
from offramp.tape.play import DeadlockError, Played, play
from offramp.tape.prices import Call, LaunchPrices, Price, PriceError, PriceList, Prices
from offramp.tape.split import Split, split
from offramp.tape.steps import Steps, find_steps
from offramp.tape.summary import summarize, to_json
from offramp.tape.tape import Group, Tables, Tape, TapeError, TapeWriter, pack, write
from offramp.tape.trace import write_trace

__all__ = [
    "QUEUE_DEPTH",
    "Blocks",
    "Breakdown",
    "Call",
    "Clock",
    "DeadlockError",
    "Group",
    "LaunchPrices",
    "Mark",
    "Memory",
    "ModuleTime",
    "OperatorTime",
    "Played",
    "Price",
    "PriceError",
    "PriceList",
    "Prices",
    "Split",
    "Steps",
    "Tables",
    "Tape",
    "TapeError",
    "TapeWriter",
    "break_down",
    "find_steps",
    "measure_memory",
    "pack",
    "play",
    "split",
    "summarize",
    "to_json",
    "write",
    "write_trace",
]
