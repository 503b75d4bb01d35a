"""What is behind a device: signs of made-up machines, and the chips they stand for."""

from __future__ import annotations

import pytest

from offramp import chips
from offramp.chips.detect import Identification, Probes, identify


def machine(
    device_name: str | None,
    env: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
    paths: tuple[str, ...] = (),
    commands: tuple[str, ...] = (),
) -> Identification:
    probes = Probes(
        env=dict.fromkeys(env, "1"),
        find_spec=lambda name: name in modules,
        exists=lambda pattern: pattern in paths,
        which=lambda name: f"/usr/bin/{name}" if name in commands else None,
    )
    return identify(device_name, probes)


NVIDIA = "/proc/driver/nvidia/version"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in chips.names()
        if any(s.kind == "device_name" for s in chips.load(name).presentation.detect)
    ],
)
def test_every_chip_is_known_by_the_name_it_shows(name: str) -> None:
    found = machine(chips.load(name).presentation.device_name)
    assert found.chip == name


def test_a_longer_name_wins() -> None:
    assert machine("NVIDIA RTX PRO 6000D", paths=(NVIDIA,)).chip == "nvidia-rtx-pro-6000d"
    assert machine("NVIDIA H200", paths=(NVIDIA,)).chip == "nvidia-h200"
    assert machine("NVIDIA H20", paths=(NVIDIA,)).chip == "nvidia-h20"
    assert machine("NVIDIA H20-3e", paths=(NVIDIA,)).chip is None


def test_a_cuda_device_under_import_hooks_is_a_kunlun() -> None:
    found = machine("GPU", modules=("torch_xmlir",), paths=("/dev/xpuctrl",))
    assert found.vendors == ("Baidu Kunlunxin",)
    assert "kunlun-p800" in found.candidates
    assert "torch_xmlir" in found.why


def test_another_makers_name_over_import_hooks_is_doubted() -> None:
    found = machine("NVIDIA A100-SXM4-80GB", modules=("torch_xmlir",))
    assert found.chip is None
    assert set(found.vendors) == {"NVIDIA", "Baidu Kunlunxin"}
    assert "poses" in found.why


def test_an_unrelated_plugin_does_not_raise_doubt() -> None:
    found = machine("NVIDIA H100 80GB HBM3", modules=("torch_npu",), paths=(NVIDIA,))
    assert found.chip == "nvidia-h100"


def test_a_device_that_the_catalogue_lacks_has_a_maker_but_no_chip() -> None:
    found = machine("NVIDIA GeForce GTX 1080", paths=(NVIDIA,))
    assert (found.chip, found.vendors, found.candidates) == (None, ("NVIDIA",), ())


def test_signs_without_a_device_name_give_candidates() -> None:
    found = machine(None, env=("PPU_SDK",), commands=("ppu-smi",))
    assert found.chip is None
    assert "zhenwu-810e" in found.candidates
    assert {sign.value for sign in found.evidence} == {"PPU_SDK", "ppu-smi"}


def test_an_empty_machine() -> None:
    found = machine(None)
    assert (found.chip, found.candidates, found.evidence) == (None, (), ())


def test_this_machine_can_be_probed() -> None:
    assert identify(None).why
