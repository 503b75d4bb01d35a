"""The catalogue: every file, against the rules of a fact and against the table it came from."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp import chips
from offramp.chips.catalogue import read
from offramp.chips.facts import FORMATS
from offramp.errors import UnknownNameError

ROOT = Path(__file__).parents[3]
TABLES = [folder / "shared" / "data" / "chips.csv" for folder in ROOT.parents]
TABLE = next((path for path in TABLES if path.exists()), None)
RATES = {
    "tf32_tflops": "tf32",
    "bf16_tflops": "bfloat16",
    "fp16_tflops": "float16",
    "fp8_tflops": "float8",
    "int8_tops": "int8",
    "fp4_tflops": "float4",
    "fp32_tflops": "float32",
}
FIGURES = {
    "mem_gb": ("memory", 1e9),
    "mem_bw_gbs": ("memory_bandwidth", 1e9),
    "interconnect_gbs_bidir": ("link_bandwidth", 1e9),
    "tdp_w": ("power", 1),
    "die_mm2": ("die_area", 1),
}
SEED = (
    *("zhenwu-810e", "kunlun-p800", "ascend-910b", "mtt-s5000", "cpu"),
    *("nvidia-h100", "nvidia-h100-pcie", "nvidia-h800", "nvidia-h20", "nvidia-h200"),
    *("nvidia-a100", "nvidia-a800", "nvidia-b200", "nvidia-b30a", "nvidia-rtx-pro-6000d"),
    "nvidia-v100",
)


@pytest.mark.parametrize("name", chips.names())
def test_every_fact_has_unit_tier_and_source(name: str) -> None:
    chip = chips.load(name)
    facts = list(chip.all_facts())
    assert ("facts", "memory") in {(section, key) for section, key, _ in facts}
    for section, key, fact in facts:
        assert fact.tier in chips.TIERS, (section, key)
        assert fact.source, (section, key)
        assert fact.unit, (section, key)
        if not isinstance(fact.value, str):
            low, high = fact.interval
            assert low <= high
    assert chip.memory_bytes > 2**30
    assert chip.absent_formats <= set(FORMATS)
    assert not chip.absent_formats & chip.unknown_formats
    assert chip.presentation.device_name


@pytest.mark.parametrize("name", chips.names())
def test_a_rate_stands_for_a_format_that_the_chip_has(name: str) -> None:
    chip = chips.load(name)
    for fmt in {*chip.matrix_rates, *chip.vector_rates} & set(FORMATS):
        assert fmt not in chip.absent_formats


def test_seed_chips_are_there() -> None:
    assert set(SEED) <= set(chips.names())
    assert list(chips.names()) == sorted(chips.names())


@pytest.mark.skipif(TABLE is None, reason="the table of chips is not beside the repository")
def test_the_table_of_chips_is_covered_and_agrees() -> None:
    assert TABLE is not None
    known = [chips.load(name) for name in chips.names()]
    by_title = {title: chip for chip in known for title in (chip.title, *chip.aliases)}
    rows = [
        row
        for row in csv.DictReader(TABLE.read_text().splitlines())
        if row["mem_gb"] and any(row[column] for column in RATES)
    ]
    assert len(rows) > 40
    for row in rows:
        chip = by_title.get(row["chip"])
        assert chip is not None, f"{row['chip']} is not in the catalogue"
        for column, (key, scale) in FIGURES.items():
            if row[column] and float(row[column]):
                _agree(chip.facts.get(key), float(row[column]) * scale, f"{chip.name} {key}")
        for column, fmt in RATES.items():
            if row[column]:
                fact = chip.matrix_rates.get(fmt)
                if fmt == "float32" and fact is None:
                    fact = chip.vector_rates.get(fmt)
                _agree(fact, float(row[column]) * 1e12, f"{chip.name} {fmt}")


def _agree(fact: chips.Fact | None, figure: float, where: str) -> None:
    assert fact is not None, f"{where} was lost"
    low, high = fact.interval
    assert low * 0.98 <= figure <= high * 1.02, f"{where}: {figure} is not in {low} to {high}"


def test_figures_of_the_810e() -> None:
    chip = chips.load("zhenwu-810e")
    assert chip.matrix_rates["bfloat16"].value == 123e12
    assert chip.vector_rates["float32"].value == 25e12
    assert chip.memory_bytes == 96 * 2**30
    assert (chip.multi_processor_count, chip.warp_size, chip.chips_per_node) == (64, 32, 16)
    assert chip.presentation.capability == (8, 0)
    assert "float8_e4m3fn" in chip.absent_formats
    assert "float64" in chip.unknown_formats
    assert chip.facts["memory_bandwidth"].value is None
    assert chip.facts["memory_bandwidth"].tier == "assumed"


def test_names_in_clusters_are_the_makers_own() -> None:
    names = {name: chips.load(name).cluster.resource for name in chips.names()}
    assert names["zhenwu-810e"] == "alibabacloud.com/ppu"
    assert names["kunlun-p800"] == "kunlunxin.com/xpu"
    assert names["ascend-910b"] == "huawei.com/Ascend910"
    for prefix, resource in (("nvidia", "nvidia.com/gpu"), ("amd", "amd.com/gpu")):
        assert {r for name, r in names.items() if name.startswith(f"{prefix}-")} == {resource}
    assert not names["cpu"]
    assert not names["biren-br100"], "nothing public names it for this chip"


def test_variables_for_training_say_why() -> None:
    given = {name: chips.load(name).cluster.environment for name in chips.names()}
    assert {name for name, variables in given.items() if variables} == {
        "zhenwu-810e",
        "kunlun-p800",
    }
    for name, variable, value, tier in (
        ("zhenwu-810e", "TORCHINDUCTOR_COMPILE_THREADS", "1", "measured"),
        ("kunlun-p800", "XDNN_FC_GEMM_DTYPE", "int32_with_ll", "vendor"),
    ):
        fact = given[name][variable]
        assert (fact.value, fact.tier) == (value, tier)
        assert fact.note
        named = [f"{quirk.what} {quirk.effect}" for quirk in chips.load(name).quirks]
        assert any(f"{variable}={value}" in text for text in named), "a quirk names it too"


def test_own_name_chips() -> None:
    shown = {name: chips.load(name).presentation for name in ("ascend-910b", "mtt-s5000")}
    assert [p.device_type for p in shown.values()] == ["npu", "musa"]
    assert [p.collectives for p in shown.values()] == ["hccl", "mccl"]
    assert shown["ascend-910b"].visible_env == "ASCEND_RT_VISIBLE_DEVICES"


def test_the_processor_has_this_machines_memory() -> None:
    chip = chips.load("cpu")
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < chip.memory_bytes <= total
    assert chip.facts["memory"].tier == "measured"
    assert not chip.matrix_rates


def test_chips_can_be_keys_and_travel_between_processes() -> None:
    chip = chips.load("zhenwu-810e")
    assert {chip: 1}[chips.load("zhenwu-810e")] == 1
    copy = pickle.loads(pickle.dumps(chip))
    assert list(copy.all_facts()) == list(chip.all_facts())


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'zhenwu-810e'"):
        chips.load("zhenwu-810")
    with pytest.raises(UnknownNameError, match="nvidia-h100"):
        chips.load("h100")


def test_a_chip_file_can_be_loaded_by_path(tmp_path: Path) -> None:
    source = Path(chips.__file__).parent / "data" / "nvidia-h20.toml"
    mine = tmp_path / "my-chip.toml"
    mine.write_text(source.read_text().replace('title = "H20"', 'title = "Mine"'))
    chip = chips.load(str(mine))
    assert (chip.name, chip.title) == ("my-chip", "Mine")


def test_importing_is_light_and_loading_is_quick() -> None:
    code = (
        "import sys, offramp.chips; "
        "print(*sorted({'torch', 'rich', 'numpy', 'tomllib', 'argparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    path = Path(chips.__file__).parent / "data" / "zhenwu-810e.toml"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        read(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.010
