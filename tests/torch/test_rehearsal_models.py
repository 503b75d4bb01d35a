"""Models train alike with values and without: operators, shapes, allocations, peaks of memory."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
from rehearsed import Rehearsed, perform, stretches

from offramp.launch.player import Part

CHIP = "nvidia-h100"
MODELS = ["mlp fused", "mlp foreach", "convolutions", "qwen3", "qwen3 checkpointing", "moe"]
# CPU kernels that take memory of their own while they run, at their model's peak.
WITH_WORKSPACE = {"mlp fused", "mlp foreach", "convolutions", "qwen3 checkpointing"}
Pair = tuple[Rehearsed, Rehearsed]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With values, and without: of what is larger than 4 KiB, nothing is computed."""
    folder = tmp_path_factory.mktemp("models")
    part = Part(0, 1, str(folder / "without.tape"), steps=0, known_bytes=4096)
    with ThreadPoolExecutor(2) as crew:
        runs = [
            crew.submit(perform, "models", folder, CHIP),
            crew.submit(perform, "models", folder, CHIP, part),
        ]
        return runs[0].result(), runs[1].result()


@pytest.mark.parametrize("model", MODELS)
def test_operators_and_allocations_are_the_same(trained: Pair, model: str) -> None:
    real, rehearsed = (stretches(run.tape)[MODELS.index(model)].steps for run in trained)
    assert len(real) > 50
    assert [step.name for step in rehearsed] == [step.name for step in real]
    for mine, other in zip(rehearsed, real, strict=True):
        assert asdict(mine) == asdict(other)


@pytest.mark.parametrize("model", MODELS)
def test_peaks_of_memory_are_the_same_but_for_workspaces(trained: Pair, model: str) -> None:
    real, rehearsed = (stretches(run.tape)[MODELS.index(model)] for run in trained)
    said, without = (run.said[model] for run in trained)
    assert (real.peak, rehearsed.peak) == (said, without)  # max_memory_allocated is on the tape
    assert rehearsed.settled == real.settled
    assert without == rehearsed.settled  # without values no operator takes a workspace
    assert (said > without) == (model in WITH_WORKSPACE)


def test_models_are_all_there(trained: Pair) -> None:
    assert [list(run.said) for run in trained] == [MODELS, MODELS]
