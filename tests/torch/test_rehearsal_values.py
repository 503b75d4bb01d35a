"""A rehearsal's shapes are PyTorch's; what it computes is right; what it does not is told."""

from pathlib import Path

import pytest
from rehearsed import Rehearsed, perform

from offramp.launch.player import Part


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("values")
    part = Part(0, 1, str(folder / "values.tape"), steps=0, kept=0.5)
    return perform("values", folder, "nvidia-b200:8", part)


@pytest.mark.parametrize("chip", ["nvidia-h100", "ascend-910b"])
def test_shapes_types_and_strides_are_those_of_the_cpu(tmp_path: Path, chip: str) -> None:
    part = Part(0, 1, str(tmp_path / "shapes.tape"), steps=0, known_bytes=0)
    said = perform("shapes", tmp_path, chip, part).said
    assert said["cases"] > 100
    # PyTorch's own rule for shapes gives V the strides of the library that GPUs use.
    svd = said["different"].pop("svd")
    assert [[row[:2] for row in svd[side]] for side in ("cpu", "chip")] == [
        [["torch.float32", [5, 3]], ["torch.float32", [3]], ["torch.float32", [3, 3]]]
    ] * 2
    assert said["different"] == {}


def test_small_values_are_computed(values: Rehearsed) -> None:
    assert values.said["chip"] == values.said["host"]
    assert values.said["declared for known"] == {}


def test_which_memory_holds_values(values: Rehearsed) -> None:
    assert values.said["states"] == {
        "small zeros": True,
        "large zeros": False,
        "just as large as allowed": True,
        "one element more": False,
        "from unknown": False,
        "times zero": False,
        "from known and unknown": False,
        "partly written with unknown": False,
        "that part made known again": False,
        "all set to zero": True,
        "copied over with unknown": False,
        "copied over from the host": True,
        "added to in place": False,
        "written through out=": True,
    }
    assert values.said["zeros again"] == [[0.0] * 4] * 4
    assert values.said["after a masked write"] is False


def test_numbers_that_are_not_there_say_so(values: Rehearsed) -> None:
    said = values.said
    assert said["item"] == ["not computed"] * 5
    assert said["mean of items"] == said["norm"] == "not computed"
    assert said["item of known"] == 2.5
    assert said["item compares"] == [True, True, True]


def test_copies_to_the_host_are_counted(values: Rehearsed) -> None:
    assert values.said["copies to the host"] == 3
    assert values.said["copied"] == [[[0.0] * 4] * 4, [[0.0] * 4] * 4, True]
    assert values.note is not None
    assert values.note["declared"]["values copied to the host"] >= 3


def test_questions_are_answered_so_that_programs_go_on(values: Rehearsed) -> None:
    assert values.said["questions"] == {
        "isnan.any": False,
        "isinf.any": False,
        "isfinite.all": True,
        "allclose": True,
        "equal": True,
    }
    assert values.said["scales"] == [65536.0] * 3  # GradScaler met no overflow


def test_routing_is_even(values: Rehearsed) -> None:
    assert values.said["experts"] == [512 * 2 // 8] * 8
    assert values.said["experts by mask"] == [512 * 2 // 8] * 8
    assert values.said["distinct in each row"]
    assert values.said["counted by histc"] == [512 * 2 // 8] * 8


def test_masks_keep_the_share_asked_for_unless_they_are_known(values: Rehearsed) -> None:
    assert values.said["kept"] == {
        "nonzero": [50, 2],
        "nonzero tuple": [50, 50],
        "where": [50, 50],
        "masked_select": [50],
        "index": [50],
        "rows": [5, 6],
        "assigned": [10, 10],
        "known mask": [3, 6],
        "known mask selects": [18],
        "unique": [24],
    }


def test_a_tebibyte_takes_no_memory(values: Rehearsed) -> None:
    assert values.said["allocated bytes"] >= 1 << 40
    assert values.said["resident bytes"] < 1 << 30
