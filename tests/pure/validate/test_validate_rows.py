"""Rows of published runs: what is read, what is refused, what job each becomes."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.errors import UsageError
from offramp.validate import rows, run
from offramp.validate.mapping import UnmappedError, case_of, rules
from offramp.validate.predict import extended, played_counts, rehearsal_of
from offramp.validate.rows import Row

PUBLISHED = {row.id: row for file in rows.BUILT_IN for row in rows.read(file)}
MEGATRON = replace(
    next(
        row
        for row in PUBLISHED.values()
        if row.source_title.startswith("vTrain") and (row.tp, row.pp, row.dp) == (2, 2, 2)
    ),
    source_title="a source that measured",
)


def test_a_step_is_what_tokens_a_second_make_it() -> None:
    row = replace(
        MEGATRON, value_kind="tokens_per_s_per_chip", value=500.0, gbs_seqs=64, seq_len=1000
    )
    assert row.step_s == pytest.approx(64 * 1000 / (500 * row.chip_count))
    assert replace(row, value_kind="tokens_per_s_global").step_s == pytest.approx(128.0)
    assert replace(row, value_kind="samples_per_s", value=16.0).step_s == 4.0
    assert replace(row, value_kind="mfu_pct").step_s is None


def test_a_gigabyte_is_what_the_note_says() -> None:
    row = replace(MEGATRON, value_kind="peak_memory_GB", value=2.0, notes="torch, GiB")
    assert row.memory_bytes == 2 * 2**30
    assert replace(row, notes="as nvidia-smi prints it").memory_bytes == 2e9


def test_derived_steps_agree_with_those_of_the_file() -> None:
    """The file has the seconds of a step, computed elsewhere."""
    with rows.BUILT_IN[0].open(encoding="utf-8", newline="") as file:
        stated = {line["id"]: line["derived_step_time_s"] for line in csv.DictReader(file)}
    compared = [
        (PUBLISHED[name].step_s, float(text))
        for name, text in stated.items()
        if text and PUBLISHED[name].step_s is not None
    ]
    assert len(compared) > 800
    far = [pair for pair in compared if abs(pair[0] / pair[1] - 1) > 0.01]
    assert not far


def test_a_row_becomes_the_job_that_it_describes() -> None:
    case = case_of(MEGATRON)
    assert case.chip == "nvidia-a100"
    assert case.job["layout.tp"] == case.job["layout.pp"] == case.job["layout.dp_replicate"] == 2
    assert case.job["layout.dp_shard"] == 1
    assert case.job["model.attention"] == "products"
    assert case.job["layout.recompute"] == "full"
    assert case.job["train.compile"]  # Megatron's kernels are fused
    assert case.config["vocab_size"] % (128 * 2) == 0
    assert case.config["vocab_size"] - MEGATRON.vocab < 256
    assert case.micro_batches * 2 * MEGATRON.mbs == MEGATRON.gbs_seqs
    assert case.nodes == 1
    assert not case.unknown
    # One product for queries, keys and values; weights kept in 16 bits beside the optimizer's.
    assert case.config["model_type"] == "gpt_neox"
    assert case.job["layout.zero"] == 1
    # Megatron-LM's defaults, and its dropout of attention is PyTorch's own.
    assert case.config["attention_dropout"] == case.config["hidden_dropout"] == 0.1
    assert case.job["train.eager_random"]
    assert case.job["train.precision"] == "fp16"
    assert case.job["layout.reduce"] == "products"
    assert "layout.reduce" not in case_of(replace(MEGATRON, precision="bf16")).job


def test_fewer_micro_batches_than_stages_go_forward_first() -> None:
    few = replace(MEGATRON, pp=4, tp=2, dp=1, gbs_seqs=2 * MEGATRON.mbs)
    assert case_of(few).job["layout.pipeline"] == "gpipe"
    assert "layout.pipeline" not in case_of(replace(few, gbs_seqs=4 * MEGATRON.mbs)).job


def test_megatron_sends_parts_between_stages() -> None:
    assert case_of(MEGATRON).job["layout.split_messages"]
    for change in ({"seq_parallel": "y"}, {"tp": 1, "dp": 4}, {"pp": 1, "dp": 4}):
        one = replace(MEGATRON, gbs_seqs=8 * MEGATRON.mbs, **change)
        assert "layout.split_messages" not in case_of(one).job
    assert "layout.split_messages" not in case_of(replace(MEGATRON, framework="torchtitan")).job


def test_ranks_share_within_groups() -> None:
    """1,024 chips of which two share a layer: 128 groups of four."""
    job = case_of(PUBLISHED["internevo-032"]).job
    assert job["layout.tp"] == 2
    assert job["layout.dp_replicate"] == 128
    assert job["layout.dp_shard"] == 4
    assert job["layout.zero"] == 1
    with pytest.raises(UnmappedError, match="do not divide into groups of 3"):
        case_of(replace(PUBLISHED["internevo-032"], dp_sharding="ZeRO-1 within groups of 3"))


def test_models_with_gates_have_no_dropout() -> None:
    case = case_of(PUBLISHED["flagperf-001"])
    assert case.config["model_type"] == "llama"
    assert "train.eager_random" not in case.job
    assert not case.config.get("attention_dropout")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chip": "google-tpu-v3"}, "not in the catalogue"),
        ({"precision": "fp8 (TE)"}, "8-bit products"),
        ({"mbs": None}, "mbs is not stated"),
        ({"gbs_seqs": 7}, "does not divide"),
        ({"moe_experts": 8}, "mixture of experts"),
        ({"recompute": "selective: mlp"}, "recompute that offramp train has not"),
        ({"task": "LoRA"}, "task 'LoRA'"),
        ({"cp": 3}, "do not divide"),
        ({"notes": "alternating short/long attention windows"}, "windows of the past"),
        ({"chip_count": 7}, "do not divide"),
        ({"value_kind": "mfu_pct"}, "no time and no memory"),
    ],
)
def test_what_no_job_stands_for_is_left_out_and_says_why(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(UnmappedError, match=message):
        case_of(replace(MEGATRON, **change))


def test_what_a_source_does_not_state_is_named() -> None:
    assert case_of(replace(MEGATRON, attention_impl="")).unknown == ("attention",)
    many = replace(MEGATRON, chip_count=16, dp=4, gbs_seqs=MEGATRON.gbs_seqs * 2, network="")
    assert case_of(many).unknown == ("network",)
    stated = case_of(replace(many, network="8x200Gb/s HDR IB per node"))
    assert stated.network == ("rail", 8, 200, "InfiniBand")
    assert not stated.unknown
    guessed = case_of(replace(many, network="8x200Gb/s RoCE class (not stated)"))
    assert guessed.network == ("rail", 8, 200, "RoCE")
    assert guessed.unknown == ("network",)


def test_most_published_rows_have_a_job() -> None:
    cases, left_out = run.cases_of(PUBLISHED.values())
    assert len(cases) + len(left_out) == len(PUBLISHED)
    counted = [case for case in cases if not case.unknown]
    assert len(counted) >= 300
    assert len({case.row.chip for case in counted}) >= 6
    assert all(reason for reason in left_out.values())


def test_only_steps_on_exact_lines_are_taken_as_computed() -> None:
    """Clocks stray: no source that measured has steps of three batch sizes on one line."""
    steps: dict[Row, dict[int, float]] = defaultdict(dict)
    for row in PUBLISHED.values():
        if row.step_s is not None and row.gbs_seqs:
            job = replace(row, id="", notes="", confidence="", value_kind="", value=0, gbs_seqs=0)
            steps[job].setdefault(row.gbs_seqs, row.step_s)
    strays = defaultdict(list)
    for job, seconds in steps.items():
        few, *between, many = sorted(seconds) if len(seconds) > 2 else (0, 0)
        for batch in between:
            slope = (seconds[many] - seconds[few]) / (many - few)
            on_line = seconds[few] + slope * (batch - few)
            strays[job.source_title].append(abs(seconds[batch] / on_line - 1))
    assert len(strays) >= 3
    computed = {source for source, far in strays.items() if len(far) > 9 and max(far) < 1e-5}
    assert all(min(strays[source]) > 1e-3 for source in strays if source not in computed)
    unmeasured = {
        case.row.source_title
        for case in run.cases_of(PUBLISHED.values())[0]
        if "whether it was measured" in case.unknown
    }
    assert unmeasured == computed


def test_a_sample_is_the_same_every_time_and_has_every_source() -> None:
    cases, _ = run.cases_of(PUBLISHED.values())
    chosen = run.sampled(cases, 2)
    assert chosen == run.sampled(cases, 2)
    assert {c.row.source_title for c in chosen} == {c.row.source_title for c in cases}
    assert run.sampled(cases, 0)[0] in cases


def test_rules_are_regular_expressions_of_their_sections() -> None:
    import re

    for section, entries in rules().items():
        for entry in entries:
            re.compile(entry.get("match", entry.get("row", "")))
            assert {"is", "refused", "kernels", "chip", "per", "name"} & set(entry), section


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("id,value\na,1\n")
    with pytest.raises(UsageError, match=r"lacks .*chip"):
        rows.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        rows.read(tmp_path / "none.csv")


def test_a_value_that_is_no_number_is_told_with_its_row(tmp_path: Path) -> None:
    text = rows.BUILT_IN[1].read_text(encoding="utf-8").splitlines()
    header = text[0].split(",")
    with rows.BUILT_IN[1].open(encoding="utf-8", newline="") as file:
        line = next(csv.DictReader(file))
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerow(line | {"value": "fast"})
    with pytest.raises(UsageError, match=r"row 2: value is 'fast'; expected a positive number"):
        rows.read(path)


def _step(seconds: float) -> dict[str, object]:
    return {
        "step_s": {"mid": seconds, "low": seconds / 2, "high": seconds * 2},
        "split": {
            "compute_s": {"matmul": seconds},
            "exposed_communication_s": {},
            "bubble_s": 0.0,
            "host_s": 0.0,
            "idle_s": 0.0,
        },
        "memory": {"allocated_bytes": 5, "reserved_bytes": 6},
        "fits": True,
    }


def test_a_step_is_extended_along_its_line() -> None:
    """a + b m with a = 3, b = 2, known at 4 and 8: 103 at 50."""
    case = replace(case_of(MEGATRON), micro_batches=50)
    case.job["layout.pp"] = 4
    assert played_counts(case) == (4, 8)
    found = extended([_step(11.0), _step(19.0)], [5.0, 9.0], (4, 8), 50)
    assert (found.seconds, found.low, found.high) == pytest.approx((103.0, 51.5, 206.0))
    assert found.plain_s == pytest.approx(51.0)
    assert played_counts(replace(case, micro_batches=8)) == (8,)
    assert extended([_step(19.0)], [9.0], (8,), 8).seconds == 19.0


def test_a_card_that_differs_is_rehearsed_with_its_own_facts(tmp_path: Path) -> None:
    """A catalogue's chip of 80 GB and 700 W, of which a source has one of 96 GB and 500 W."""
    row = next(row for row in PUBLISHED.values() if row.chip.endswith("96g-hbm2e-500w"))
    plan = rehearsal_of(case_of(replace(row, precision="bf16", mbs=1)), 1, tmp_path, 60.0)
    assert plan.chip.facts["power"].value == 500
    assert plan.chip.facts["memory_bandwidth"].value == 2.4e12


def test_eight_bit_products_of_one_scale_a_tensor_are_trained() -> None:
    row = PUBLISHED["torchtitan-003"]
    case = case_of(row)
    assert (case.job["train.precision"], case.job["train.fp8"]) == ("bf16", True)
    with pytest.raises(UnmappedError, match="under tensor parallelism"):
        case_of(PUBLISHED["torchtitan-011"])


def test_kernels_by_hand_start_from_python() -> None:
    assert case_of(MEGATRON).host > 1
    eager = next(row for row in PUBLISHED.values() if "llm-foundry" in row.framework)
    assert case_of(eager).host == 1


def test_results_are_kept_and_broken_files_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run.Results(path).add(MEGATRON, error="no")
    assert run.Results(path).found == {MEGATRON.id: {"id": MEGATRON.id, "error": "no"}}
    assert run.scored([case_of(MEGATRON)], run.Results(path)) == ([], {MEGATRON.id: "no"})
    other = replace(MEGATRON, id="other")
    results = run.Results(path)
    results.add(other, error="neither")
    results.forget([case_of(MEGATRON)])
    assert (
        run.Results(path).found == results.found == {"other": {"id": "other", "error": "neither"}}
    )
    path.write_text("{")
    with pytest.raises(UsageError, match="line 1: not a result"):
        run.Results(path)


def test_a_card_behind_another_switch_is_rehearsed_there(tmp_path: Path) -> None:
    names = ("megatron-2020-007", "bigscience-v100-003")
    for name in names:
        (tmp_path / name).mkdir()
    switched, pairs = (
        rehearsal_of(case_of(PUBLISHED[name]), 1, tmp_path / name, 60.0) for name in names
    )
    facts = switched.chip.facts
    assert (facts["power"].value, facts["chips_per_node"].value) == (350, 16)
    assert facts["link_topology"].value == "all to all through NVSwitch"
    link = pairs.cluster.groups[0].link
    assert (link.topology.value, link.links) == ("mesh", 3)


def test_before_bfloat16_and_flash_attention() -> None:
    case = case_of(PUBLISHED["bigscience-v100-003"])
    assert case.chip == "nvidia-v100"
    assert case.job["train.precision"] == "fp16"
    assert case.job["model.attention"] == "products"
    assert case.job["layout.recompute"] == "full"
    assert case.network == ("rail", 4, 100, "Omni-Path")
    assert not case.unknown


def test_what_notes_leave_open_is_unknown() -> None:
    assert case_of(PUBLISHED["bigscience-v100-018"]).unknown == ("where activations are kept",)
    (told_twice,) = case_of(PUBLISHED["bigscience-v100-011"]).unknown
    assert "stated twice" in told_twice
    (unit,) = case_of(PUBLISHED["bigscience-045-mem"]).unknown
    assert "GB" in unit
    assert not case_of(PUBLISHED["bigscience-045"]).unknown
    assert not case_of(PUBLISHED["torchtitan-001-mem"]).unknown


def test_a_framework_says_which_model_and_loss_stand_for_its_own() -> None:
    case = case_of(PUBLISHED["mosaic-177"])
    assert case.config["model_type"] == "gpt2"
    assert case.config["n_inner"] == 4 * case.config["hidden_size"]
    # 16-bit logits and their gradient, 4 bytes, in place of 6.
    assert case.job["layout.reduce"] == "products"  # its fully sharded data parallelism is PURE
    tokens = 10 * 2048
    assert case.job["train.loss_chunk"] == pytest.approx(tokens * 4 / 6, abs=1)
    other = case_of(PUBLISHED["megatron-2020-001"])
    assert other.config["model_type"] == "gpt_neox"
    assert other.job["train.loss_chunk"] == 8 * 1024
    pytorchs = case_of(PUBLISHED["torchtitan-001"])
    assert pytorchs.job["train.loss_chunk"] == 0
    assert pytorchs.job["layout.recompute"] == "alternate"
