"""Which chip a run stands on, and what of its file training goes by."""

from __future__ import annotations

import pytest
import torch

from offramp import chips
from offramp.errors import UsageError
from offramp.train import ground, reading
from offramp.train.job import Job

CPU = torch.device("cpu")


def on(name: str, *, virtual: bool = False) -> ground.Ground:
    return ground.Ground(chips.load(name), torch.device("cuda"), virtual)


def test_the_processor_is_no_virtual_chip() -> None:
    found = ground.find(reading.change(Job(), {"chip.name": "cpu"}), CPU)
    assert (found.virtual, found.chip) == (False, chips.load("cpu"))
    assert found.peak_flops("bf16")[0] is None


def test_the_peak_is_the_files_and_a_virtual_chip_has_none() -> None:
    rate = chips.load("nvidia-h100").matrix_rates["bfloat16"]
    assert on("nvidia-h100").peak_flops("bf16") == (rate.value, f"{rate.tier}: {rate.source}")
    assert on("nvidia-h100", virtual=True).peak_flops("bf16")[0] is None
    nobody = ground.Ground(None, torch.device("cuda"), virtual=False)
    assert nobody.peak_flops("bf16") == (None, "this chip has no known bfloat16 rate")


def test_quirks_come_from_the_file() -> None:
    assert on("kunlun-p800").quirk(ground.SUM_ONLY)
    assert on("kunlun-p800").quirk(ground.BLOCKING_COPIES)
    assert not on("nvidia-h100").quirk(ground.SUM_ONLY)
    known = {quirk.name for name in chips.names() for quirk in chips.load(name).quirks}
    assert {ground.SUM_ONLY, ground.BLOCKING_COPIES} <= known


def test_a_weak_compiler_is_told() -> None:
    job = reading.change(Job(), {"train.compile": True})
    (said,) = on("kunlun-p800").cautions(job)
    assert "torch.compile may run eagerly or fail" in said
    assert not on("kunlun-p800").cautions(Job())
    assert not on("nvidia-h100").cautions(job)


def test_formats_that_a_chip_lacks_are_refused() -> None:
    job = reading.change(Job(), {"train.fp8": True})
    on("nvidia-h100").check(job)
    with pytest.raises(UsageError, match="8-bit products on Zhenwu 810E, real, as cuda: absent"):
        on("zhenwu-810e").check(job)
    for name in chips.names():
        if "bfloat16" in chips.load(name).absent_formats:
            with pytest.raises(UsageError, match=r"has no bfloat16; expected one of .*'fp32'"):
                on(name).check(Job())


def test_another_chip_than_the_job_names_is_refused(
    chip: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's virtual chip, which answers as the real one would."""
    device = torch.device("cuda")
    monkeypatch.delenv("OFFRAMP_CHIP", raising=False)
    here = ground.find(reading.change(Job(), {"chip.name": "here"}), device)
    assert here.chip is chips.load("zhenwu-810e")
    assert not here.virtual
    with pytest.raises(UsageError, match="'nvidia-h100', and the device here is 'zhenwu-810e'"):
        ground.find(reading.change(Job(), {"chip.name": "nvidia-h100"}), device)
    monkeypatch.setenv("OFFRAMP_CHIP", "kunlun-p800:2")
    assert ground.find(Job(), device).chip is chips.load("kunlun-p800")
