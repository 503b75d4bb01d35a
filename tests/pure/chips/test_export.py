"""Export rules: worked cases, an independent statement of the thresholds, and intervals."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp import chips
from offramp.chips import export

CASES_FILE = Path(__file__).parents[1] / "data" / "export_cases.csv"
CASES = list(csv.DictReader(CASES_FILE.read_text().splitlines()))
FORMAT = {"4": "float4", "8": "float8", "16": "float16", "32": "float32"}
R2022, R2023, R2026 = export.rules()


def chip_of(case: dict[str, str], folder: Path) -> chips.Chip:
    """A chip file with just what the case states."""
    trust = 'tier = "vendor", source = "case" }'
    facts = [
        f'memory = {{ value = 1, unit = "GB", {trust}',
        f'host_bandwidth = {{ value = 0, unit = "GB/s", {trust}',
        f"datacenter = {{ value = {'true' if case['datacenter'] == 'yes' else 'false'}, {trust}",
    ]
    for column, key, unit in (
        ("die_mm2", "die_area", "mm2"),
        ("io_gbs_bidir", "link_bandwidth", "GB/s"),
        ("dram_bw_gbs", "memory_bandwidth", "GB/s"),
    ):
        if case[column]:
            figure = case[column].rstrip("?")
            facts.append(f'{key} = {{ value = {figure}, unit = "{unit}", {trust}')
    rates = dict(pair.split(":") for pair in case["bit_ops"].split("|") if pair)
    lines = [
        f'{FORMAT[bits]} = {{ value = {ops}, unit = "TFLOP/s", {trust}'
        for bits, ops in rates.items()
    ]
    shown = [
        f'{key} = {{ value = "x", {trust}' for key in ("device_type", "device_name", "collectives")
    ]
    path = folder / "case.toml"
    head = ['title = "case"', 'vendor = "case"', "[sources]", 'case = "the worked case"']
    text = [*head, "[facts]", *facts, "[rates.matrix]", *lines, "[presentation]", *shown]
    path.write_text("\n".join(text))
    return chips.read(path)


def subject_of(case: dict[str, str], folder: Path) -> export.Profile:
    subject = export.profile(chip_of(case, folder))
    if case["bit_ops"]:
        return subject
    tpp = float(case["tpp_expected"])  # the case states the figure without its parts
    return export.Profile((tpp, tpp), subject.die_mm2, subject.io_gbs, subject.memory_gbs, False)


@pytest.mark.parametrize("case", CASES, ids=[case["chip"] for case in CASES])
def test_worked_cases(case: dict[str, str], tmp_path: Path) -> None:
    subject = subject_of(case, tmp_path)
    assert subject.tpp == pytest.approx((float(case["tpp_expected"]),) * 2, rel=1e-4)
    if case["pd_expected"]:
        expected = float(case["pd_expected"].rstrip("?"))
        assert subject.density == pytest.approx((expected, expected), abs=0.006)
    wanted = {"yes": "3A090", "no": "not controlled", "": export.UNKNOWN}
    assert export.assess(subject, R2022).verdict == wanted[case["oct2022_controlled"]]
    found = export.assess(subject, R2023)
    if "unless" in case["oct2023_class"]:
        assert found.verdict == export.UNKNOWN
        limits = [float(number) for number in re.findall(r"die<(\d+)", case["oct2023_class"])]
        edges = [band[1] for band in export.density_bands(subject, R2023)]
        assert sorted(limits) == pytest.approx(edges[:-1], abs=0.5)
        assert "not subject" in export.assess(subject, R2026).possible
        return
    expected = case["oct2023_class"].split(" ")[0].replace("none", "not controlled")
    assert found.verdict == expected
    lane = {"eligible": "case-by-case review", "not": "presumption of denial", "n/a": "not subject"}
    word = case["jan2026_china_lane"].split(" ")[0]
    assert export.assess(subject, R2026).verdict == lane.get(word, export.UNKNOWN)


def published_2023(tpp: float, density: float, datacenter: bool) -> str:
    """The October 2023 thresholds, written out once more."""
    if tpp >= 4800:
        return "3A090.a"
    if not datacenter:
        return "not controlled"
    if tpp >= 1600 and density >= 5.92:
        return "3A090.a"
    if (tpp >= 2400 and density >= 1.6) or (tpp >= 1600 and density >= 3.2):
        return "3A090.b"
    return "not controlled"


def published(tpp: float, die: float, io: float, memory: float, datacenter: bool) -> list[str]:
    class_2023 = published_2023(tpp, tpp / die, datacenter)
    lane = {"3A090.a": "presumption of denial", "3A090.b": "unknown"}.get(class_2023, "not subject")
    if class_2023 == "3A090.a" and tpp < 21000 and memory < 6500:
        lane = "case-by-case review"
    first = "3A090" if tpp >= 4800 and io >= 600 else "not controlled"
    return [first, class_2023, lane]


TPP = st.one_of(st.floats(1, 60000), st.sampled_from([1600.0, 2400.0, 4800.0, 21000.0]))
DIE = st.one_of(st.floats(50, 2000), st.sampled_from([500.0, 750.0, 1000.0]))
IO = st.one_of(st.floats(0, 2000), st.just(600.0))
MEMORY = st.one_of(st.floats(100, 9000), st.just(6500.0))


@given(TPP, DIE, IO, MEMORY, st.booleans())
@settings(deadline=None)
def test_known_inputs_give_the_published_classes(
    tpp: float, die: float, io: float, memory: float, datacenter: bool
) -> None:
    subject = export.Profile((tpp, tpp), (die, die), (io, io), (memory, memory), datacenter)
    found = [export.assess(subject, rule).verdict for rule in export.rules()]
    assert found == published(tpp, die, io, memory, datacenter)


@given(st.data())
@settings(deadline=None)
def test_an_answer_holds_for_every_value_the_inputs_allow(data: st.DataObject) -> None:
    ends = [tuple(sorted((data.draw(kind), data.draw(kind)))) for kind in (TPP, DIE, IO, MEMORY)]
    datacenter = data.draw(st.sampled_from([True, False, None]))
    subject = export.Profile(*ends, datacenter)
    assessed = [export.assess(subject, rule) for rule in export.rules()]
    inside = [data.draw(st.floats(low, high)) for low, high in ends]
    for use in (True, False) if datacenter is None else (datacenter,):
        for found, truth in zip(assessed, published(*inside, use), strict=True):
            assert truth in found.possible
            assert found.verdict in (truth, export.UNKNOWN)


def test_unknown_is_never_not_controlled() -> None:
    nothing = export.Profile(tpp=(1600, math.inf))
    assert [export.assess(nothing, rule).verdict for rule in export.rules()] == ["unknown"] * 3


def test_an_unknown_that_cannot_matter_does_not() -> None:
    small = export.Profile(tpp=(100, 1599))
    assert [export.assess(small, rule).verdict for rule in export.rules()] == [
        *("not controlled", "not controlled", "not subject")
    ]
    large = export.Profile(tpp=(21000, math.inf), io_gbs=(600, math.inf))
    assert [export.assess(large, rule).verdict for rule in export.rules()] == [
        *("3A090", "3A090.a", "presumption of denial")
    ]


@pytest.mark.parametrize(
    ("name", "tpp"),
    [
        ("zhenwu-810e", 1968),
        ("nvidia-h20", 2368),
        ("nvidia-h100", 15832),
        ("amd-mi325x", 20919),
        ("nvidia-b200", 36000),
        ("kunlun-r200", 2048),
    ],
)
def test_figures_of_the_catalogue(name: str, tpp: float) -> None:
    low, high = export.performance(chips.load(name)).interval
    assert (low, high) == pytest.approx((tpp, tpp), rel=1e-4)


def test_a_format_without_a_public_rate_leaves_the_end_open() -> None:
    found = export.performance(chips.load("kunlun-p800"))
    assert found.interval == (5520, math.inf)
    assert "int8" in found.missing
    assert found.tier == "press"


def test_a_measured_rate_is_a_floor() -> None:
    assert export.performance(chips.load("iluvatar-bi-v150")).interval[1] == math.inf
    low, high = export.performance(chips.load("ascend-910b")).interval
    assert low == pytest.approx(313.2 * 16)
    assert high == pytest.approx(400 * 16)


def test_rules_are_dated_in_order() -> None:
    dates = [rule.in_force.isoformat() for rule in export.rules()]
    assert dates == ["2022-10-21", "2023-11-17", "2026-01-15"]
