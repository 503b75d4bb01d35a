"""Malformed chip files: each error names the file, the key and what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.chips import ChipFileError, read

GOOD = """\
title = "Sample"
vendor = "Nobody"
aliases = ["S1"]

[sources]
sheet = "the data sheet"

[facts]
memory = { value = 96, unit = "GB", tier = "vendor", source = "sheet" }
power = { low = 1, high = 2, unit = "W", tier = "assumed", source = "sheet", note = "n" }
datacenter = { value = true, tier = "vendor", source = "sheet" }
chips_per_node = { value = 8, tier = "press", source = "sheet" }

[rates.matrix]
bfloat16 = { value = 494.5, unit = "TFLOP/s", tier = "vendor", source = "sheet" }
int8 = { value = 246, unit = "TOP/s", tier = "vendor", source = "sheet" }

[[formats]]
support = "native"
names = ["bfloat16", "float32"]
tier = "vendor"
source = "sheet"

[missing_ops]
"aten::mm" = { reason = "no matrix units", tier = "measured", source = "sheet" }

[[quirks]]
name = "q"
what = "it does this"
effect = "do that"
tier = "vendor"
source = "sheet"

[presentation]
device_type = { value = "cuda", tier = "vendor", source = "sheet" }
device_name = { value = "Sample 1", tier = "vendor", source = "sheet" }
capability = { value = "8.0", tier = "vendor", source = "sheet" }
collectives = { value = "nccl", tier = "vendor", source = "sheet" }
detect = [{ kind = "env", value = "SAMPLE" }]

[cluster]
resource = { value = "sample.com/chip", tier = "vendor", source = "sheet" }
gres = { value = "gpu", tier = "vendor", source = "sheet" }

[[cluster.environment]]
name = "SAMPLE_MODE"
value = "1"
why = "it must be set"
tier = "vendor"
source = "sheet"
"""
KEYS = [
    match
    for match in re.finditer(r"(?m)(?:^|[{,] )([a-z_0-9]+) =", GOOD)
    if match.group(1) != "sheet"
]


def write(folder: Path, text: str) -> Path:
    path = folder / "sample.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ChipFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_the_sample_is_good(tmp_path: Path) -> None:
    chip = read(write(tmp_path, GOOD))
    assert chip.memory_bytes == 96 * 10**9
    assert chip.matrix_rates["bfloat16"].value == 494_500_000_000_000
    assert chip.facts["power"].interval == (1, 2)
    assert chip.missing_ops["aten::mm"].value == "no matrix units"
    assert (chip.cluster.resource, chip.cluster.gres) == ("sample.com/chip", "gpu")
    variable = chip.cluster.environment["SAMPLE_MODE"]
    assert (variable.value, variable.note, variable.tier) == ("1", "it must be set", "vendor")
    named = {(section, key) for section, key, _ in chip.all_facts()}
    assert {("cluster", "resource"), ("environment", "SAMPLE_MODE")} <= named


def test_a_chip_file_may_know_nothing_of_clusters(tmp_path: Path) -> None:
    chip = read(write(tmp_path, GOOD.split("[cluster]")[0]))
    assert (chip.cluster.resource, chip.cluster.gres) == ("", "")
    assert not chip.cluster.environment


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(match=st.sampled_from(KEYS), letter=st.sampled_from("xyzq_"))
def test_any_misspelt_key_is_refused_by_name(
    tmp_path: Path, match: re.Match[str], letter: str
) -> None:
    key = match.group(1)
    text = f"{GOOD[: match.end(1)]}{letter}{GOOD[match.end(1) :]}"
    message = refused(tmp_path, text)
    assert key in message
    assert "did you mean" in message or "is meant" in message or "expected" in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("chips_per_node =", "chip_per_node =", "facts.chip_per_node: unknown key; did you mean"),
        ("vendor = ", "vender = ", "vendor: missing; expected text in quotes; is 'vender' meant?"),
        ('unit = "GB"', 'unit = "Gb"', "facts.memory.unit: 'Gb' is not a unit of bytes; expected"),
        ('unit = "TOP/s"', 'unit = "TFLOP/s"', "rates.matrix.int8.unit: 'TFLOP/s' is not a unit"),
        ("value = 96", 'value = "96"', "facts.memory.value: '96' is not a number"),
        ("value = 96", "value = nan", "facts.memory.value: nan GB is not a finite quantity"),
        ("value = 8,", "value = 8.5,", "facts.chips_per_node.value: 8.5 is not a whole number"),
        ("value = 8,", "value = true,", "facts.chips_per_node.value: True is not a whole number"),
        ("value = true", "value = 1", "facts.datacenter.value: 1 is not true or false"),
        ('tier = "press"', 'tier = "pres"', "facts.chips_per_node.tier: 'pres' is not one of"),
        (', note = "n"', "", "facts.power.note: missing; expected the reasoning"),
        ("low = 1,", "low = 3,", "low, value and high are not in rising order"),
        ("low = 1, ", "", "facts.power.value: missing; expected a value, or both"),
        ('source = "sheet" }\nint8', 'source = "sheat" }\nint8', "did you mean 'sheet'?"),
        ('"float32"]', '"float23"]', "formats[0].names: unknown format 'float23'; did you mean"),
        ('"float32"]', '"bfloat16"]', "formats[0].names: 'bfloat16' is classified twice"),
        ('"native"', '"natives"', "formats[0].support: 'natives' is not one of native"),
        ('"aten::mm"', '"mm"', "missing_ops.mm: expected an operator's full name"),
        ('"8.0"', '"eight"', "presentation.capability: 'eight' is not a capability such as '8.0'"),
        ('kind = "env"', 'kind = "file"', "presentation.detect[0].kind: 'file' is not one of"),
        ("[rates.matrix]", "[rates.matrices]", "rates.matrices: unknown key; did you mean"),
        ("[missing_ops]", "[missing_ops", "not TOML: "),
        (
            "sample.com/chip",
            "gpu",
            "cluster.resource: 'gpu' is not a name such as 'nvidia.com/gpu'",
        ),
        ('"gpu"', '"gpu:8"', "cluster.gres: 'gpu:8' is not a name such as 'gpu'"),
        ('"SAMPLE_MODE"', '"A=B"', "cluster.environment[0].name: 'A=B' is not the name of a"),
        ('value = "1"', "value = 1", "cluster.environment[0].value: 1 is not text in quotes"),
        ("resource =", "resources =", "cluster.resources: unknown key; did you mean 'resource'?"),
        ("[cluster]", "[clusters]", "clusters: unknown key; did you mean 'cluster'"),
        ('value = "cuda"', 'value = ""', "presentation.device_type.value: empty"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    assert says in refused(tmp_path, GOOD.replace(old, new, 1))


def test_a_chip_without_memory_is_refused(tmp_path: Path) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith("memory =")]
    assert "facts.memory: missing; expected a size" in refused(tmp_path, "\n".join(lines))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ChipFileError, match="cannot be read"):
        read(tmp_path / "nowhere.toml")


def test_the_documented_example_reads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "chips.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    assert read(write(tmp_path, example)).presentation.device_name == "EX1"
    said = re.search(r"offramp: ex1\.toml: (.*)", page)
    assert said is not None
    assert said.group(1) in refused(tmp_path, example.replace("chips_per_node", "chip_per_node"))
