"""`offramp chips`: what is known about each chip, how well, and from where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from offramp.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from offramp.chips import Chip, Fact

HELP = "list chips; show every fact about one; compare several"
_PIPE_WIDTH = 100
_PRESENTED = {
    "device_type": "PyTorch's device type",
    "device_name": "name that programs see",
    "capability": "compute capability",
    "collectives": "collectives backend",
    "visible_env": "visibility variable",
    "smi": "management tool",
}
_CLUSTER = {"resource": "resource in Kubernetes", "gres": "resource in Slurm"}
_STYLES = {"derived": "cyan", "press": "yellow", "assumed": "magenta"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="show|compare")
    show = actions.add_parser("show", help="every fact about one chip, with tier and source")
    show.add_argument("name", metavar="NAME", help="a chip's name, or a chip file (*.toml)")
    compare = actions.add_parser("compare", help="several chips side by side")
    compare.add_argument("names", metavar="NAME", nargs="+", help="chips' names, two or more")
    for action in (show, compare):
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )


def execute(args: argparse.Namespace) -> int:
    """Run the verb. Raises UsageError for an unknown chip or a malformed chip file."""
    from offramp import chips

    action = getattr(args, "action", None)
    if action == "show":
        chosen = [chips.load(args.name)]
    elif action == "compare":
        if len(args.names) < 2:
            raise UsageError(f"compare needs two chips or more, and got {args.names[0]!r} alone")
        chosen = [chips.load(name) for name in args.names]
    else:
        chosen = [chips.load(name) for name in chips.names()]
    if args.json:
        _print_json(chosen, single=action == "show")
    elif action == "show":
        _show(chosen[0])
    elif action == "compare":
        _compare(chosen)
    else:
        _list(chosen)
    return 0


def _print_json(chosen: list[Chip], *, single: bool) -> None:
    import json

    from offramp.chips.describe import as_data

    data: dict[str, Any] = {"schema": 1}
    described = [as_data(chip) for chip in chosen]
    data |= {"chip": described[0]} if single else {"chips": described}
    print(json.dumps(data, indent=2, ensure_ascii=False))


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table that wraps long text and never cuts it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table


def _marked(fact: Fact | None, text: str) -> str:
    """Markup for a figure: coloured and marked by tier."""
    from rich.markup import escape

    from offramp.chips.describe import mark

    if fact is None:
        return "[dim]-[/]"
    tier = "assumed" if fact.value is None else fact.tier
    style = _STYLES.get(tier)
    plain = escape(f"{text}{mark(fact)}")
    return f"[{style}]{plain}[/]" if style else plain


def _list(chosen: list[Chip]) -> None:
    from offramp.chips import export
    from offramp.chips.describe import LEGEND

    numbers = ("GB ", "TB/s ", "Link GB/s ", "BF16 ", "FP8 ", "INT8 ", "Node ")
    table = _table("Chip", *numbers, "Device", "Oct 2023", right=numbers)
    for column in table.columns:
        column.no_wrap = column.header != "Link GB/s "  # names and figures stay in one piece
    rule = next(r for r in export.rules() if r.id == "2023-10")
    shown = {"not controlled": "-", export.UNKNOWN: f"[dim]{export.UNKNOWN}[/]"}
    vendor = ""
    for chip in sorted(chosen, key=lambda c: (c.presentation.device_type == "cpu", c.vendor)):
        if chip.vendor != vendor:
            vendor = chip.vendor
            table.add_section()
            table.add_row(f"[dim]{vendor}[/]")
        facts, rates = chip.facts, chip.matrix_rates
        verdict = export.assess(export.profile(chip), rule).verdict
        table.add_row(
            f"[bold]{chip.name}[/]",
            _figure(facts["memory"], 1e9),
            _figure(facts.get("memory_bandwidth"), 1e12),
            _figure(facts.get("link_bandwidth"), 1e9),
            _figure(rates.get("bfloat16") or rates.get("float16"), 1e12),
            _figure(rates.get("float8"), 1e12),
            _figure(rates.get("int8"), 1e12),
            _figure(facts.get("chips_per_node"), 1),
            chip.presentation.device_type,
            shown.get(verdict, verdict),
        )
    console = _console()
    console.print(table)
    console.print(
        f"{len(chosen)} chips. Dense TFLOP/s or TOP/s of the matrix units (BF16, else FP16); "
        f"memory and its\nbandwidth; links in both directions; chips per node; PyTorch's device "
        f"type.\n{LEGEND}; - not public, or none.\nOct 2023: US export class ({export.DISCLAIMER})."
        " Every fact and its source: offramp chips show NAME",
        style="dim",
    )


def _figure(fact: Fact | None, scale: float) -> str:
    """One number of the list, marked by tier; a range shows its ends."""
    if fact is None or isinstance(fact.value, str) or fact.interval == (0, 0):
        return "[dim]-[/] "
    if fact.value is None:
        return _marked(fact, "-".join(f"{end / scale:,.3g}" for end in fact.interval))
    text = _marked(fact, f"{fact.value / scale:,.4g}")
    return text if fact.tier in _STYLES else f"{text} "


def _show(chip: Chip) -> None:
    from rich.markup import escape

    from offramp.chips import describe

    numbers: dict[str, int] = {}

    def cite(source: str, note: str = "") -> str:
        number = numbers.setdefault(source, len(numbers) + 1)
        return escape(f"[{number}] {note}".strip())

    console = _console()
    also = f"; also {', '.join(chip.aliases)}" if chip.aliases else ""
    console.print(f"[bold]{chip.title}[/] ({chip.name}), {chip.vendor}{also}\n", soft_wrap=False)
    table = _table("Fact", "Value", "Tier", "Source, note")
    _fact_rows(table, chip, cite)
    table.add_section()
    for support, dtypes, fact in describe.format_groups(chip):
        if fact is None:
            table.add_row(f"formats, {support}", " ".join(dtypes), "", "nothing public says")
        else:
            source = cite(fact.source, fact.note)
            table.add_row(f"formats, {support}", " ".join(dtypes), fact.tier, source)
    for name, fact in chip.missing_ops.items():
        table.add_row(f"missing op {name}", str(fact.value), fact.tier, cite(fact.source))
    for setting in chip.arithmetic:
        fact, text = setting.fact, _marked(setting.fact, escape(setting.said))
        note = cite(fact.source, fact.note)
        table.add_row(f"arithmetic {setting.key}", text, fact.tier, note)
    table.add_section()
    for name, fact in chip.presentation.facts.items():
        label = _PRESENTED[name]
        table.add_row(label, str(fact.value), fact.tier, cite(fact.source, fact.note))
    for sign in chip.presentation.detect:
        table.add_row("told by", escape(f"{sign.kind.replace('_', ' ')} {sign.value}"))
    _cluster_rows(table, chip, cite)
    console.print(table)
    if chip.quirks:
        quirks = _table("Quirk", "What, and its effect", "Tier", "Source")
        for quirk in chip.quirks:
            said = escape(f"{quirk.what}: {quirk.effect}")
            quirks.add_row(quirk.name, said, quirk.tier, cite(quirk.source))
        console.print(quirks)
    _show_export(console, chip)
    console.print("[bold]Sources[/]")
    for source, number in numbers.items():
        console.print(escape(f"[{number}] {source}"))


def _cluster_rows(table: Table, chip: Chip, cite: Any) -> None:
    cluster = chip.cluster
    if cluster.facts or cluster.environment:
        table.add_section()
    for name, fact in cluster.facts.items():
        table.add_row(_CLUSTER[name], str(fact.value), fact.tier, cite(fact.source, fact.note))
    for name, fact in cluster.environment.items():
        source = cite(fact.source, fact.note)
        table.add_row(f"environment {name}", str(fact.value), fact.tier, source)


def _fact_rows(table: Table, chip: Chip, cite: Any) -> None:
    from offramp.chips import describe
    from offramp.chips.catalogue import SCALARS

    section = "facts"
    for group, key, fact in chip.all_facts():
        if group not in ("facts", "matrix", "vector"):
            continue
        if group != section:
            table.add_section()
            section = group
        label = SCALARS[key][1] if group == "facts" else f"{group} {key}, dense peak"
        text = _marked(fact, describe.value_text(fact))
        table.add_row(label, text, fact.tier, cite(fact.source, fact.note))


def _show_export(console: Console, chip: Chip) -> None:
    from offramp.chips import describe, export

    console.print(f"[bold]US export rules[/] ({export.DISCLAIMER})")
    console.print(f"total processing performance: {describe.tpp_text(chip)}")
    table = _table("Rule", "In force", "Class")
    for found in export.assess_chip(chip):
        verdict = describe.verdict_text(chip, found)
        table.add_row(found.rule.title, found.rule.in_force.isoformat(), verdict)
    console.print(table)


def _compare(chosen: list[Chip]) -> None:
    from offramp.chips import describe, export
    from offramp.chips.catalogue import SCALARS
    from offramp.chips.facts import FORMATS, RATE_FORMATS

    table = _table("", *(chip.name for chip in chosen))
    table.add_row("vendor", *(chip.vendor for chip in chosen))
    for key, (_, label) in SCALARS.items():
        _compare_row(table, label, [chip.facts.get(key) for chip in chosen])
    for unit in ("matrix", "vector"):
        table.add_section()
        for name in RATE_FORMATS:
            facts = [getattr(chip, f"{unit}_rates").get(name) for chip in chosen]
            _compare_row(table, f"{unit} {name}", facts)
    table.add_section()
    for name in FORMATS:
        said = [str(c.formats[name].value) if name in c.formats else "unknown" for c in chosen]
        if set(said) != {"native"}:
            table.add_row(name, *said)
    table.add_section()
    for key, label in _PRESENTED.items():
        _compare_row(table, label, [chip.presentation.facts.get(key) for chip in chosen])
    for key, label in _CLUSTER.items():
        _compare_row(table, label, [chip.cluster.facts.get(key) for chip in chosen])
    table.add_row("quirks", *(str(len(chip.quirks)) for chip in chosen))
    table.add_section()
    for rule in export.rules():
        found = [export.assess(export.profile(chip), rule).verdict for chip in chosen]
        table.add_row(f"{rule.title} ({rule.in_force.isoformat()})", *found)
    console = _console()
    console.print(table)
    text = f"{describe.LEGEND}; - not public. Formats that all have natively are left out."
    console.print(f"{text}\nExport classes: {export.DISCLAIMER}.", style="dim")


def _compare_row(table: Table, label: str, facts: list[Fact | None]) -> None:
    from offramp.chips.describe import value_text

    if any(facts):
        table.add_row(label, *(_marked(f, value_text(f) if f else "") for f in facts))
