"""The job file: what is written is what is read, and every mistake is one clear line."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.train import reading
from offramp.train.job import Job, LoraSection, ModelSection, TrainSection
from offramp.train.layout import AXES, Layout

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)))


def test_the_written_default_job_reads_as_the_default_job() -> None:
    assert reading.build(Job, tomllib.loads(reading.write(Job()))) == Job()


@given(text, st.lists(text), st.floats(0, 1e6), st.integers(1, 10**9))
def test_any_value_survives_writing(folder: str, source: list[str], lr: float, steps: int) -> None:
    changes = {
        "out": folder,
        "data.source": source or ["a"],
        "optimizer.lr": lr,
        "train.steps": steps,
        "model.config": {folder or "key": [steps, {"inner": folder}]},
    }
    job = reading.change(Job(), changes)
    again = reading.build(Job, tomllib.loads(reading.write(job)))
    assert again == job
    assert again.optimizer.lr == lr


def test_every_key_has_help() -> None:
    for section in dataclasses.fields(Job):
        made = getattr(Job(), section.name)
        if dataclasses.is_dataclass(made):
            assert all(f.metadata["help"] for f in dataclasses.fields(made)), section.name


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[trian]", "unknown key 'trian'; did you mean 'train'"),
        ("[train]\nstepz = 1", "unknown key 'train.stepz'; did you mean 'steps'"),
        ('[train]\nsteps = "many"', "train.steps: 'many' is not a whole number"),
        ("[train]\nsteps = true", "train.steps: True is not a whole number"),
        ("[train]\nsteps = -1", "train.steps: -1 is out of range; expected at least 0"),
        ('[train]\nprecision = "bf61"', "did you mean 'bf16'"),
        ("[train]\nsteps = 3\nminutes = 1", "expected one of them, and the other 0"),
        ("train = 3", "train: 3 is not a table: [train]"),
        ("[data]\nsource = []", "data.source is empty"),
        ("[data]\nsource = [3]", "data.source: [3] is not a list of texts"),
        ("[layout]\ndp_shard = 3", "train.batch is 8; expected a multiple of 24"),
        ("[layout]\ntp = 3", "data.sequence is 256; expected a multiple of 3"),
        ("[layout]\ncp = 3", "expected a multiple of 6 for cp 3"),
        ("[layout]\nep = 2", "expected a divisor of dp_shard x cp x tp = 1"),
        ("[layout]\nstages = 2", "expected pipeline = 'interleaved'"),
        ('[layout]\npp = 2\npipeline = "interleaved"', "expected layout.stages of 2 or more"),
        ("[lora]\nrank = 4", "a preset has none; give model.folder"),
        ("no toml", "not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(toml)
    with pytest.raises(UsageError) as caught:
        reading.read(Job, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        reading.read(Job, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("train.steps", "12", 12),
        ("optimizer.lr", "3e-4", 3e-4),
        ("data.source", '["a", "b"]', ["a", "b"]),
        ("chip.name", "cpu", "cpu"),
        ("train.compile", "true", True),
        ("model.config", "{hidden_size = 32}", {"hidden_size": 32}),
    ],
)
def test_a_flag_is_read_by_the_type_of_its_key(key: str, given: str, value: object) -> None:
    assert reading.parse(Job, key, given) == value


def test_a_flag_of_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'train\.setps'; did you mean 'steps'"):
        reading.parse(Job, "train.setps", "1")


def test_a_run_without_steps_or_minutes_takes_two_minutes() -> None:
    assert TrainSection().limit_s == 120
    assert TrainSection(minutes=0.5).limit_s == 30
    assert TrainSection(steps=3).limit_s == 0


@given(st.tuples(*[st.integers(1, 4)] * len(AXES)), st.integers(1, 4), st.integers(1, 3))
def test_the_batch_is_what_the_ranks_compute(
    degrees: tuple[int, ...], micro: int, accumulate: int
) -> None:
    layout = Layout(**dict(zip(AXES, degrees, strict=True)), micro_batch=micro)
    batch = micro * layout.dp * accumulate
    assert layout.accumulate(batch) == accumulate
    assert layout.world % layout.dp == 0
    if layout.dp * micro > 1:
        with pytest.raises(UsageError, match="expected a multiple of"):
            layout.check_batch(batch + 1)


def test_a_layout_that_a_model_does_not_divide_by_is_refused() -> None:
    sizes = {"layers": 4, "heads": 8, "kv_heads": 2, "experts": 6}
    Layout(pp=4).check_model(**sizes)
    for layout, said in (
        (Layout(pp=5), "more than the 4 layers"),
        (Layout(tp=4), "divisor of 2 key-value heads"),
        (Layout(dp_shard=4, ep=4), "divisor of 6 experts"),
    ):
        with pytest.raises(UsageError, match=said):
            layout.check_model(**sizes)
    with pytest.raises(UsageError, match="the layout is for 4 chips"):
        Layout(tp=4).check_world(2)


def test_adapters_need_a_model_with_weights() -> None:
    Job(model=ModelSection(folder="somewhere"), lora=LoraSection(rank=2))
    with pytest.raises(UsageError, match=r"give model\.folder"):
        Job(lora=LoraSection(rank=2))
