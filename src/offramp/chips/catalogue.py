"""The catalogue: one TOML file a chip, found by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from offramp.chips import arithmetic
from offramp.chips.facts import (
    FORMATS,
    RATE_FORMATS,
    SUPPORT,
    Cluster,
    Detection,
    Fact,
    Presentation,
    Quirk,
)
from offramp.chips.host import PROBES
from offramp.chips.reading import Context, Table, read_fact, read_trust
from offramp.errors import UnknownNameError, nearest

DATA = Path(__file__).parent / "data"

# Scalar facts in the order in which people read them: key -> dimension and label.
SCALARS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "year": ("year", "first shipped or announced"),
        "status": ("text", "status"),
        "datacenter": ("flag", "designed or marketed for data centers"),
        "memory": ("bytes", "memory"),
        "usable_memory": ("bytes", "memory that programs see"),
        "memory_type": ("text", "memory type"),
        "memory_bandwidth": ("bytes/s", "memory bandwidth"),
        "l2_cache": ("bytes", "L2 cache"),
        "link": ("text", "link between chips"),
        "link_bandwidth": ("bytes/s", "link bandwidth, both directions, per chip"),
        "link_topology": ("text", "link topology"),
        "chips_per_node": ("count", "chips per node"),
        "host_interface": ("text", "host interface"),
        "host_bandwidth": ("bytes/s", "host bandwidth, both directions"),
        "power": ("watts", "board power"),
        "process": ("text", "process"),
        "die_area": ("mm2", "die area"),
        "price": ("USD", "price"),
        "multiprocessors": ("count", "multiprocessors"),
        "warp_size": ("count", "warp size"),
        "threads_per_multiprocessor": ("count", "threads per multiprocessor"),
        "clock": ("hertz", "highest clock"),
        "execution": ("text", "how operators run"),
    }
)
_TOP_KEYS = (
    *("title", "vendor", "aliases", "sources", "facts", "rates"),
    *("formats", "missing_ops", "arithmetic", "quirks", "presentation", "cluster"),
    "costs",
)
_PRESENTED = ("device_type", "device_name", "collectives")
_OPTIONAL = ("capability", "visible_env", "smi")
# Names that [cluster] may give: key -> (form, example).
_CLUSTER_NAMES = {
    "resource": (re.compile(r"[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][\w.-]*"), "nvidia.com/gpu"),
    "gres": (re.compile(r"[a-z]\w*"), "gpu"),
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the fact `execution` may say: a chip works beside the host, or the host itself computes.
EXECUTIONS = ("asynchronous", "synchronous")
_DETECT_KINDS = ("env", "device_name", "module", "path", "command")


@dataclass(frozen=True, eq=False)
class Chip:
    """One accelerator model: facts by name, each with unit, tier and source.

    `load` gives one object per name, so chips compare and hash by identity.

    Peak rates are dense, in operations a second, by arithmetic format (RATE_FORMATS): matrix
    units apart from vector units. `formats` says per PyTorch dtype what the chip does with it.
    """

    name: str
    title: str
    vendor: str
    aliases: tuple[str, ...]
    facts: Mapping[str, Fact]
    matrix_rates: Mapping[str, Fact]
    vector_rates: Mapping[str, Fact]
    formats: Mapping[str, Fact]
    missing_ops: Mapping[str, Fact]
    quirks: tuple[Quirk, ...]
    presentation: Presentation
    cluster: Cluster = Cluster()
    arithmetic: tuple[arithmetic.Setting, ...] = ()  # where it is known not to be the host's
    costs_file: Path | None = None  # what `offramp calibrate` measured beside the facts

    @property
    def is_synchronous(self) -> bool:
        """Whether the host computes each operator itself before it goes on."""
        fact = self.facts.get("execution")
        return fact is not None and fact.value == "synchronous"

    @property
    def memory_bytes(self) -> int:
        """What programs can allocate: the usable memory where it is known, else the label's."""
        fact = self.facts.get("usable_memory", self.facts["memory"])
        assert isinstance(fact.value, int)  # the reader asks for a whole number of bytes
        return fact.value

    @property
    def chips_per_node(self) -> int | None:
        return self._count("chips_per_node")

    @property
    def multi_processor_count(self) -> int | None:
        return self._count("multiprocessors")

    @property
    def warp_size(self) -> int | None:
        return self._count("warp_size")

    @property
    def absent_formats(self) -> frozenset[str]:
        """PyTorch dtypes known not to exist on the chip."""
        return frozenset(f for f, fact in self.formats.items() if fact.value == "absent")

    @property
    def unknown_formats(self) -> frozenset[str]:
        """PyTorch dtypes for which nothing public says yes or no."""
        said = {f for f, fact in self.formats.items() if fact.value != "unknown"}
        return frozenset(FORMATS) - said

    def all_facts(self) -> Iterator[tuple[str, str, Fact]]:
        """Every fact as (section, key, fact), in reading order."""
        yield from (("facts", key, self.facts[key]) for key in SCALARS if key in self.facts)
        for section, rates in (("matrix", self.matrix_rates), ("vector", self.vector_rates)):
            yield from ((section, key, rates[key]) for key in RATE_FORMATS if key in rates)
        yield from (("formats", key, self.formats[key]) for key in FORMATS if key in self.formats)
        yield from (("missing op", key, fact) for key, fact in self.missing_ops.items())
        yield from (("arithmetic", setting.key, setting.fact) for setting in self.arithmetic)
        yield from (("presentation", key, fact) for key, fact in self.presentation.facts.items())
        yield from (("cluster", key, fact) for key, fact in self.cluster.facts.items())
        yield from (("environment", key, fact) for key, fact in self.cluster.environment.items())

    def _count(self, key: str) -> int | None:
        fact = self.facts.get(key)
        return fact.value if fact is not None and isinstance(fact.value, int) else None


@cache
def names() -> tuple[str, ...]:
    """The names of every chip in the catalogue, sorted."""
    return tuple(sorted(f[:-5] for f in os.listdir(DATA) if f.endswith(".toml")))


@cache
def load(name: str) -> Chip:
    """The chip of that name, or of that file when `name` ends in `.toml`.

    Raises UnknownNameError (with the nearest names) and ChipFileError (file, key, expectation).
    """
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in names():
        raise UnknownNameError("chip", name, names(), "`offramp chips` lists them all")
    return read(DATA / f"{name}.toml")


def read(path: Path) -> Chip:
    """Read one chip file strictly. Raises ChipFileError."""
    top = Table.of_file(path, "a chip file")
    context = Context(path, _read_sources(top), PROBES)
    facts = _read_scalars(top.table("facts", required=True), context)
    rates = top.table("rates")
    matrix, vector = (_read_rates(rates.table(unit), context) for unit in ("matrix", "vector"))
    rates.close(("matrix", "vector"))
    chip = Chip(
        name=path.stem,
        title=top.take("title", str),
        vendor=top.take("vendor", str),
        aliases=top.texts("aliases", []),
        facts=facts,
        matrix_rates=matrix,
        vector_rates=vector,
        formats=_read_formats(top.tables("formats"), context),
        missing_ops=_read_missing(top.table("missing_ops"), context),
        quirks=tuple(_read_quirk(row, context) for row in top.tables("quirks")),
        presentation=_read_presentation(top.table("presentation", required=True), context),
        cluster=_read_cluster(top.table("cluster"), context),
        arithmetic=arithmetic.read(top.table("arithmetic"), context),
        costs_file=_beside(path, top.take("costs", str, "")),
    )
    top.close(_TOP_KEYS)
    return chip


def _beside(path: Path, name: str) -> Path | None:
    """A file that the chip file names, relative to its own folder."""
    return path.parent / name if name else None


def _read_sources(top: Table) -> dict[str, str]:
    table = top.table("sources", required=True)
    return {key: table.take(key, str) for key in table.names()}


def _read_scalars(table: Table, context: Context) -> Mapping[str, Fact]:
    facts = {}
    for key in table.names():
        if key not in SCALARS:
            break
        facts[key] = read_fact(_fact_table(table, key), SCALARS[key][0], context)
    table.close(SCALARS)
    for key in ("memory", "usable_memory"):
        if (key == "memory" and key not in facts) or (
            key in facts and not isinstance(facts[key].value, int)
        ):
            raise table.fail(key, "missing; expected a size in whole bytes, such as 96 and 'GB'")
    said = facts["execution"].value if "execution" in facts else EXECUTIONS[0]
    if said not in EXECUTIONS:
        raise table.fail("execution", f"{said!r} is not one of {', '.join(EXECUTIONS)}")
    return facts


def _read_rates(table: Table, context: Context) -> Mapping[str, Fact]:
    rates = {}
    for key in table.names():
        if key not in RATE_FORMATS:
            break
        dimension = "op/s" if key.startswith("int") else "flop/s"
        rates[key] = read_fact(_fact_table(table, key), dimension, context)
    table.close(RATE_FORMATS)
    return rates


def _read_formats(rows: list[Table], context: Context) -> Mapping[str, Fact]:
    formats: dict[str, Fact] = {}
    for row in rows:
        support = row.choose("support", SUPPORT)
        tier, source = read_trust(row, context)
        fact = Fact(support, "text", tier, source, note=row.take("note", str, ""))
        for name in row.texts("names"):
            if name not in FORMATS:
                raise row.fail("names", f"unknown format {name!r}{nearest(name, FORMATS)}")
            if name in formats:
                raise row.fail("names", f"{name!r} is classified twice")
            formats[name] = fact
        row.close(("support", "names", "tier", "source", "note"))
    return formats


def _read_missing(table: Table, context: Context) -> Mapping[str, Fact]:
    missing = {}
    for name in table.names():
        row = _fact_table(table, name)
        if "::" not in name:
            raise row.fail("", "expected an operator's full name, such as 'aten::mm'")
        tier, source = read_trust(row, context)
        missing[name] = Fact(row.take("reason", str), "text", tier, source)
        row.close(("reason", "tier", "source"))
    return missing


def _read_quirk(row: Table, context: Context) -> Quirk:
    tier, source = read_trust(row, context)
    fields: list[str] = [row.take(key, str) for key in ("name", "what", "effect")]
    row.close(("name", "what", "effect", "tier", "source"))
    return Quirk(fields[0], fields[1], fields[2], tier, source)


def _read_presentation(table: Table, context: Context) -> Presentation:
    facts = {key: read_fact(_fact_table(table, key), "text", context) for key in _PRESENTED}
    capability: tuple[int, int] | None = None
    if "capability" in table.names():
        fact = read_fact(_fact_table(table, "capability"), "text", context)
        major, dot, minor = str(fact.value).partition(".")
        if not (dot and major.isdecimal() and minor.isdecimal()):
            raise table.fail("capability", f"{fact.value!r} is not a capability such as '8.0'")
        capability, facts["capability"] = (int(major), int(minor)), fact
    for key in ("visible_env", "smi"):
        if key in table.names():
            facts[key] = read_fact(_fact_table(table, key), "text", context)
    rules = []
    for row in table.tables("detect"):
        kind = cast(Any, row.choose("kind", _DETECT_KINDS))
        rules.append(Detection(kind, row.take("value", str)))
        row.close(("kind", "value"))
    table.close((*_PRESENTED, *_OPTIONAL, "detect"))
    return Presentation(
        **{key: str(facts[key].value) for key in _PRESENTED},
        capability=capability,
        visible_env=str(facts["visible_env"].value) if "visible_env" in facts else "",
        smi=str(facts["smi"].value) if "smi" in facts else None,
        detect=tuple(rules),
        facts=facts,
    )


def _read_cluster(table: Table, context: Context) -> Cluster:
    facts = {}
    for key, (form, example) in _CLUSTER_NAMES.items():
        if key in table.names():
            fact = read_fact(_fact_table(table, key), "text", context)
            if not form.fullmatch(str(fact.value)):
                raise table.fail(key, f"{fact.value!r} is not a name such as {example!r}")
            facts[key] = fact
    environment: dict[str, Fact] = {}
    for row in table.tables("environment"):
        tier, source = read_trust(row, context)
        name: str = row.take("name", str)
        if not _VARIABLE.fullmatch(name):
            raise row.fail("name", f"{name!r} is not the name of a variable")
        if name in environment:
            raise row.fail("name", f"{name!r} is set twice")
        value, why = row.take("value", str), row.take("why", str)
        environment[name] = Fact(value, "text", tier, source, note=why)
        row.close(("name", "value", "why", "tier", "source"))
    table.close((*_CLUSTER_NAMES, "environment"))
    names = {key: str(fact.value) for key, fact in facts.items()}
    return Cluster(**names, environment=environment, facts=facts)


def _fact_table(table: Table, key: str) -> Table:
    return table.table(key, required=True)
