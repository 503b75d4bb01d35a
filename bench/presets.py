"""The table of docs/presets.md: every preset of `offramp train` on four chips, by rehearsal.

Each job is played here, and the table is priced from the tapes. The rules by which a layout is
chosen are in `rungs` and on the page. A killed run goes on where it was. Run it so:

    nice -n 10 python bench/presets.py --out rows.jsonl --keep-tapes tapes/
    python bench/presets.py --out rows.jsonl --keep-tapes tapes/ --reprice   # other costs, no play
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offramp import chips
from offramp.errors import OfframpError
from offramp.launch import rehearse
from offramp.launch.files import write_text
from offramp.tape.tape import Tape, write
from offramp.train.ground import BLOCKING_COPIES, SUM_ONLY
from offramp.train.models import presets
from offramp.units import format_count, format_seconds

CHIPS = ("zhenwu-810e", "kunlun-p800", "nvidia-h100", "ascend-910b")
PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
BEGIN, END = "<!-- table: bench/presets.py -->", "<!-- end of table -->"
PER_NODE = 8
TOKENS = 4096  # of a micro-batch, and the longest sequence
ACCUMULATE = 4  # micro-batches of a rank in a step
STATE_BYTES = 16  # of a parameter: weight, gradient and AdamW's two moments in float32
MOST_NODES = 256
RECOMPUTES = ("none", "selective", "full")
GIB = 1 << 30
FIXED = (
    *("--steps", "100", "--set", "data.boundaries=false", "--set", "sample.prompts=[]"),
    *("--set", "checkpoint.every=0", "--set", "checkpoint.export=false"),
)


@dataclass(frozen=True)
class Job:
    """One preset in one layout."""

    preset: str
    nodes: int
    per_node: int
    sequence: int
    micro_batch: int
    tp: int = 1
    ep: int = 1
    recompute: str = "none"

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def batch(self) -> int:
        return self.world // self.tp * self.micro_batch * ACCUMULATE

    @property
    def layout(self) -> dict[str, Any]:
        """What is set of the layout beside the micro-batch, by key."""
        degrees = {"dp_shard": self.world // self.tp, "tp": self.tp, "ep": self.ep}
        kept = {name: degree for name, degree in degrees.items() if degree > 1}
        return kept | ({"recompute": self.recompute} if self.recompute != "none" else {})

    @property
    def name(self) -> str:
        parts = [f"{key}-{value}" for key, value in self.layout.items()]
        return "_".join([self.preset, f"{self.world}", *parts])

    def command(self, chip: str) -> list[str]:
        words = ["offramp", "train", "--chip", chip, "--preset", self.preset, *FIXED]
        words += ["--sequence", str(self.sequence), "--batch", str(self.batch)]
        for key, value in {**self.layout, "micro_batch": self.micro_batch}.items():
            words += ["--set", f"layout.{key}={value}"]
        return words

    def plan(self, chip: str) -> rehearse.Plan:
        given = {"nodes": self.nodes, "per_node": self.per_node}
        return rehearse.plan(self.command(chip), chip=chip, limit_s=1800, **given)


def rungs(preset: presets.Preset, memory_bytes: int) -> Iterator[tuple[Job, ...]]:
    """Layouts of a preset, the fewest nodes first; of each, from the most memory to the least.

    Our own small sizes take one chip. Others take 1, 2, 4, ... nodes of 8 chips: fully sharded
    over all of them; dense models on several nodes tensor parallel within each; experts spread
    over the chips of a node. Nodes whose memory is less than the states' are passed over.
    """
    config = preset.config
    longest = config.get("max_position_embeddings") or config.get("n_positions") or TOKENS
    sequence = min(TOKENS, int(longest))
    own = {"sequence": sequence, "micro_batch": TOKENS // sequence}
    if preset.own:
        yield tuple(Job(preset.name, 1, 1, recompute=each, **own) for each in RECOMPUTES)
        return
    nodes = 1
    while nodes <= MOST_NODES:
        world = nodes * PER_NODE
        if _fewest_parameters(preset) * STATE_BYTES <= world * memory_bytes:
            experts = _experts(config)
            spread = math.gcd(experts, PER_NODE) if experts else 1
            heads = int(config.get("num_key_value_heads") or config.get("n_head") or 1)
            tp = math.gcd(heads, PER_NODE) if nodes > 1 and not experts else 1
            yield tuple(
                Job(preset.name, nodes, PER_NODE, tp=tp, ep=spread, recompute=each, **own)
                for each in RECOMPUTES
            )
        nodes *= 2


def _experts(config: dict[str, Any]) -> int:
    names = ("num_experts", "n_routed_experts", "moe_num_experts")
    return next((int(config[name]) for name in names if config.get(name)), 0)


def _fewest_parameters(preset: presets.Preset) -> float:
    """The exact count, or the maker's rounded one less a twentieth."""
    return preset.parameters or 0.95e9 * float(preset.published.rstrip("B"))


def tape_chip(chip: str) -> str:
    """The chip that is played for `chip`: the first that `offramp train` treats alike.

    Training goes by two peculiarities of chip files; the tapes of chips that agree in them have
    the same records (tests/programs/test_fitting.py).
    """
    return next(other for other in CHIPS if _treated(other) == _treated(chip))


def _treated(chip: str) -> frozenset[str]:
    return frozenset({q.name for q in chips.load(chip).quirks} & {SUM_ONLY, BLOCKING_COPIES})


def played(job: Job, chip: str, folder: Path) -> tuple[list[Tape], list[dict[str, Any]]]:
    """The tapes and notes of a job: kept ones where there are any, else played now.

    Raises OfframpError where the program fails; that is kept too.
    """
    place = folder / tape_chip(chip) / job.name
    notes = place / "notes.json"
    if not notes.exists():
        place.mkdir(parents=True, exist_ok=True)
        found = rehearse.execute(job.plan(tape_chip(chip)))
        for tape in found.tapes:
            write(place / f"{tape.rank:05d}.tape", tape)
        write_text(notes, json.dumps(list(found.notes)))
    return [Tape.read(path) for path in sorted(place.glob("*.tape"))], json.loads(notes.read_text())


def row(job: Job, chip: str, folder: Path) -> dict[str, Any]:
    """A job on a chip, as the table needs it."""
    tapes, notes = played(job, chip, folder)
    found = rehearse.conclude(job.plan(chip), tapes, notes).summary
    memory, step = found["memory"], found["step_s"]
    tokens = job.batch * job.sequence / job.world
    return {
        "preset": job.preset,
        "chip": chip,
        "job": vars(job),
        "fits": found["fits"],
        "peak_bytes": memory["allocated_bytes"],
        "reserved_bytes": memory["reserved_bytes"],
        "capacity_bytes": memory["capacity_bytes"],
        "step_s": step,
        "tokens_per_s": {
            "low": tokens / step["high"],
            "mid": tokens / step["mid"],
            "high": tokens / step["low"],
        },
        "mfu": found["mfu"],
        "exposed": sum(found["split"]["exposed_communication_s"].values()) / step["mid"],
        "refused": found["refused"],
        "is_stable": found["steps"]["is_stable"],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def chosen(name: str, chip: str, folder: Path) -> dict[str, Any]:
    """The row of a preset: the first layout of its ladder that fits the chip."""
    preset, memory_bytes = presets.load(name), chips.load(chip).memory_bytes
    for jobs in rungs(preset, memory_bytes):
        low, high = 0, len(jobs)  # each rung holds less: look between for the first that fits
        best: dict[str, Any] | None = None
        is_roomy = 4 * size(name) * STATE_BYTES < jobs[0].world * memory_bytes
        while low < high:
            middle = 0 if is_roomy and high == len(jobs) and not low else (low + high) // 2
            found = row(jobs[middle], chip, folder)
            if found["fits"]:
                best, high = found, middle
            else:
                low = middle + 1
        if best is not None:
            return best
    return {"preset": name, "chip": chip, "problem": f"no layout fits on {MOST_NODES} nodes"}


def of_preset(name: str, wanted: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """A preset's rows on several chips, one after the other: they share tapes."""
    rows = []
    for chip in wanted:
        began_s = time.monotonic()
        try:
            found = chosen(name, chip, folder)
        except OfframpError as error:
            found = {"preset": name, "chip": chip, "problem": str(error)}
        rows.append({**found, "bench_s": round(time.monotonic() - began_s, 1)})
    return rows


def repriced(old: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished row at the present costs, from its kept tapes."""
    if "problem" in old:
        return old
    return {**row(Job(**old["job"]), old["chip"], folder), "bench_s": old["bench_s"]}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are finished; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def size(name: str) -> float:
    preset = presets.load(name)
    return 0.0 if preset.own else _fewest_parameters(preset)


def fill(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Play what is missing, small presets first, and append each preset's rows."""
    folder = Path(arguments.keep_tapes)
    done = {(old["preset"], old["chip"]) for old in read_rows(arguments.out)}
    missing = {name: [c for c in CHIPS if (name, c) not in done] for name in names}
    order = [name for name in sorted(names, key=size) if missing[name]]
    with ProcessPoolExecutor(arguments.jobs) as pool, arguments.out.open("a") as file:
        waiting = [pool.submit(of_preset, name, missing[name], folder) for name in order]
        for number, future in enumerate(as_completed(waiting), 1):
            for found in future.result():
                file.write(json.dumps(found, sort_keys=True) + "\n")
                said = found.get("problem") or f"{format_seconds(found['step_s']['mid'])} a step"
                print(f"{number}/{len(order)} {found['preset']} {found['chip']}: {said}")
            file.flush()
            os.fsync(file.fileno())
            sys.stdout.flush()


def reprice(arguments: argparse.Namespace) -> None:
    """Write the rows anew from their tapes, whole or not at all."""
    rows, folder = read_rows(arguments.out), Path(arguments.keep_tapes)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        fresh = list(pool.map(repriced, rows, [folder] * len(rows)))
    write_text(arguments.out, "".join(json.dumps(r, sort_keys=True) + "\n" for r in fresh))


def cells(found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    preset, chip = presets.load(found["preset"]), chips.load(found["chip"])
    start = [preset.name, chip.title]
    if "problem" in found:
        said = found["problem"].splitlines()
        return [
            *start,
            f"failed: {said[0]} {said[-1].strip() if said[1:] else ''}"[:150],
            *[""] * 6,
        ]
    job, step, rate = Job(**found["job"]), found["step_s"], found["tokens_per_s"]
    layout = ", ".join(f"{key} {value}" for key, value in job.layout.items()) or "one chip"
    span = f"{format_seconds(step['low'])} to {format_seconds(step['high'])}"
    share = "-" if found["mfu"] is None else f"{found['mfu']:.1%}"
    return [
        *start,
        f"{job.world}",
        f"{layout}; batch {job.batch} x {job.sequence:,}",
        f"{found['peak_bytes'] / GIB:.2f} of {found['capacity_bytes'] / GIB:.1f}",
        f"{format_seconds(step['mid'])} ({span})",
        f"{rate['mid']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f})",
        share,
        f"{found['exposed']:.0%}",
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown of all rows, the smallest preset first."""
    heads = ["preset", "chip", "chips", "layout; sequences of tokens a step", "peak GiB", "step"]
    heads += ["tokens/s a chip", "MFU", "exposed communication"]
    order = sorted(rows, key=lambda r: (size(r["preset"]), r["preset"], CHIPS.index(r["chip"])))
    lines = [heads, ["---"] * len(heads), *[cells(found) for found in order]]
    days = sorted({found["date"] for found in rows if "date" in found})
    count = sum("problem" not in found for found in rows)
    head = f"{count} rows of {len(presets.names()) * len(CHIPS)}, computed on {' and '.join(days)}."
    return "\n".join([head, "", *("| " + " | ".join(line) + " |" for line in lines)])


def write_page(rows: Sequence[dict[str, Any]]) -> None:
    """Put the table between the page's markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    if not rest or not after:
        raise SystemExit(f"{PAGE} has no markers {BEGIN} and {END}")
    write_text(PAGE, f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}")


def main() -> None:
    """Fill, reprice, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("presets.jsonl"), help="finished rows")
    parser.add_argument("--keep-tapes", default="preset-tapes", metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=2, help="presets at a time")
    parser.add_argument("--only", action="append", metavar="PRESET", help="may be given again")
    parser.add_argument("--reprice", action="store_true", help="from kept tapes, nothing played")
    parser.add_argument("--no-page", action="store_true", help="leave docs/presets.md alone")
    arguments = parser.parse_args()
    names = [presets.load(name).name for name in arguments.only or presets.names()]
    print(f"{format_count(len(names))} presets, {len(CHIPS)} chips", flush=True)
    if arguments.reprice:
        reprice(arguments)
    else:
        fill(arguments, names)
    if not arguments.no_page:
        write_page(read_rows(arguments.out))


if __name__ == "__main__":
    main()
