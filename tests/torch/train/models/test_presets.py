"""Preset files: read strictly, built at full size without memory, counted as published."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.errors import UnknownNameError, UsageError
from offramp.train.job import ModelSection
from offramp.train.models import presets
from offramp.train.models.build import configure, describe

NAMES = presets.names()
FULL = [name for name in NAMES if not name.endswith("-nano")]


def read_figure(text: str) -> tuple[float, float]:
    """A published figure such as '0.36B' and the weight of its last digit."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([BM])", text)
    assert match, text
    unit = {"B": 1e9, "M": 1e6}[match[3]]
    return float(text[:-1]) * unit, unit / 10 ** len(match[2] or "")


@pytest.mark.parametrize("name", NAMES)
def test_configurations_hold_every_published_value(name: str) -> None:
    preset = presets.load(name)
    config = configure(ModelSection(preset=name))
    for key, value in preset.config.items():
        if key in {"rope_theta", "rope_scaling"}:
            expected = value if isinstance(value, dict) else {key: value}
            assert {**config.rope_parameters, **expected} == config.rope_parameters
        else:
            assert getattr(config, key) == value, key


@pytest.mark.parametrize("name", FULL)
def test_count_equals_the_published_one(name: str) -> None:
    preset = presets.load(name)
    shape = describe(configure(ModelSection(preset=name)))
    if preset.parameters:
        assert shape.parameters == preset.parameters
    published, digit = read_figure(preset.published)
    # Makers round or cut: one unit of the last digit printed.
    assert abs(shape.parameters - published) <= digit * 1.0001
    if preset.active:
        active, digit = read_figure(preset.active)
        assert abs(shape.active - active) <= digit
    else:
        assert shape.active == shape.parameters


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-nano")])
def test_own_sizes_fit_a_laptop(name: str) -> None:
    preset = presets.load(name)
    shape = describe(configure(ModelSection(preset=name)))
    assert preset.own
    assert 1e6 <= shape.without_embeddings <= 5e6
    assert (shape.experts, shape.experts_per_token) in {(0, 0), (8, 2)}


def test_families_are_complete() -> None:
    assert {presets.load(name).model_type for name in NAMES} == {
        *("qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe", "llama", "gpt2", "deepseek_v3")
    }


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'qwen3-8'.*'qwen3-8b'.*model\.folder"):
        presets.load("qwen3-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title = 1\n", "title: 1 is not text in quotes"),
        ("titel = 'x'\n", "unknown key 'titel'; did you mean 'title'"),
        ("title = 'x'\n[source]\nconfig = 'y'\n", r"config\.model_type is missing"),
        ("title = \n", "Invalid value"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected) as caught:
        presets.read(path)
    assert str(path) in str(caught.value)


def test_presets_load_without_torch() -> None:
    code = (
        "import sys; from offramp.train.models import presets; presets.load('gpt2'); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
