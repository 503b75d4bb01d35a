"""What `offramp doctor` says, as labelled lines."""

from __future__ import annotations

from collections.abc import Iterator

from offramp.launch.machine import Machine
from offramp.report.lines import Line, plural
from offramp.units import format_bytes

TITLE = "offramp doctor: what this machine offers"


def lines(machine: Machine) -> list[Line]:
    """Every part in one line, then each finding with its remedy."""
    return [*_software(machine), *_build(machine), *_hardware(machine), *_findings(machine)]


def _software(machine: Machine) -> Iterator[Line]:
    yield Line("python", f"{machine.python_version}, {machine.python}, {machine.system}")
    if machine.torch is None:
        yield Line("torch", "not installed", "bad")
    else:
        targets = [f"{name} {version}" for name, version in machine.torch.built_for.items()]
        build = ", ".join(targets) or "CPU"
        yield Line("torch", f"{machine.torch.version}, built for {build}, {machine.torch.folder}")
    state = "registered" if machine.registered else "not registered"
    switch = "" if machine.autoload else ", but loading of backends is switched off"
    others = f"; also: {', '.join(machine.other_backends)}" if machine.other_backends else ""
    good = machine.registered and machine.autoload
    yield Line("hook", f"{state} with torch{switch}{others}", "plain" if good else "bad")


def _build(machine: Machine) -> Iterator[Line]:
    compiler = machine.compiler
    if compiler is None:
        yield Line("compiler", "none", "bad")
    else:
        standard = "C++20" if compiler.cpp20 else "no C++20"
        text = f"{compiler.version}, {standard}, {compiler.command}"
        yield Line("compiler", text, "plain" if compiler.cpp20 else "bad")
    yield Line("ninja", machine.ninja or "none", "plain" if machine.ninja else "bad")
    cache = machine.cache
    held = "empty, the first run compiles the core"
    if cache.builds:
        held = f"{plural(len(cache.builds), 'core')}, {format_bytes(cache.size_bytes)}"
    access = "" if cache.writable else "; cannot be written"
    yield Line("cache", f"{held}{access}; {cache.folder}", "plain" if cache.writable else "bad")


def _hardware(machine: Machine) -> Iterator[Line]:
    memory = format_bytes(machine.memory_bytes)
    shared = machine.shared_memory_bytes
    share = f", /dev/shm {format_bytes(shared)}" if shared is not None else ""
    yield Line("host", f"{plural(machine.cores, 'core')}, {memory} of memory{share}")
    label = "devices"
    for device in machine.accelerators:
        size = f", {format_bytes(device.memory_bytes)}" if device.memory_bytes else ""
        behind = device.behind or " or ".join(device.candidates) or "no chip of the catalogue"
        text = f"{device.device} {device.name!r}{size}: {behind} ({device.why})"
        yield Line(label, text, "plain" if device.behind else "warn")
        label = ""
    if not machine.accelerators:
        yield Line(label, f"no real accelerator: {machine.accelerator_note}")


def _findings(machine: Machine) -> Iterator[Line]:
    if not machine.findings:
        yield Line("verdict", "ready: nothing to mend", "good")
    for number, finding in enumerate(machine.findings, 1):
        yield Line(f"mend {number}", finding.what, "bad")
        yield Line("", f"-> {finding.fix}")
