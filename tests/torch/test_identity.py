"""CUDA's names on a virtual chip: what a program written for CUDA sees."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from offramp.identity import tally
from offramp.identity.driver import visible_count
from offramp.identity.packages import refused

# Names of `torch.cuda` that are classes, constants, submodules or need no entry of their own.
NOT_FUNCTIONS = {"device", "device_of", "StreamContext", "cudaStatus", "check_error"}


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OFFRAMP_CHIP": "zhenwu-810e:2", **variables}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_a_tensor_is_cuda_wherever_it_is_asked(chip: Any) -> None:
    x = torch.ones(2, device="cuda")
    assert x.is_cuda
    assert x.device == torch.device("cuda", 0)
    assert x.type() == "torch.cuda.FloatTensor"
    assert "device='cuda:0'" in repr(x)
    assert x.untyped_storage().device.type == "cuda"
    assert torch.nn.Parameter(x).device.type == "cuda"
    seen: list[torch.device] = []
    thread = threading.Thread(target=lambda: seen.append((x + 1).device))
    thread.start()
    thread.join()
    assert seen == [torch.device("cuda", 0)]


def test_the_chip_is_known_by_its_facts(chip: Any) -> None:
    presented = chip.chip.presentation
    properties = torch.cuda.get_device_properties(0)
    assert torch.cuda.get_device_name() == properties.name == presented.device_name
    assert torch.cuda.get_device_capability() == presented.capability
    assert properties.total_memory == chip.chip.memory_bytes
    assert torch.cuda.device_count() == torch.accelerator.device_count() == 2
    assert torch.accelerator.current_accelerator() == torch.device("cuda")


def test_both_spellings_read_the_same_memory(chip: Any) -> None:
    torch.cuda.init()
    before = torch.cuda.memory_allocated()
    held = torch.empty(3 * 2**20, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_allocated() - before == held.numel()
    assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated()
    free, total = torch.cuda.mem_get_info()
    assert total - free == torch.cuda.memory_reserved()
    assert torch.cuda.device_memory_used() == torch.cuda.memory_reserved()


def test_what_nobody_knows_is_answered_and_said() -> None:
    done = run(
        "import gc, torch\nfrom offramp.identity.tally import Tally\ntorch.cuda.nccl.version()\n"
        "[t] = [o for o in gc.get_objects() if type(o) is Tally]\n"
        "print(torch.cuda.device_memory_used(), *(row['name'] for row in t.record()['defaults']))",
        OFFRAMP_MEMORY="1GiB",
    )
    used, *names = done.stdout.split()
    assert used == "0"
    assert "torch.cuda.nccl.version" in names


def test_events_and_streams_are_classes_of_torch_cuda(chip: Any) -> None:
    stream = torch.cuda.Stream()
    assert isinstance(stream, torch.Stream)
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() == stream
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    end.record()
    torch.cuda.synchronize()
    assert 0 <= start.elapsed_time(end) < 60_000
    untimed = torch.cuda.Event()
    untimed.record()
    with pytest.raises(RuntimeError, match="enable_timing"):
        start.elapsed_time(untimed)


@pytest.mark.parametrize(
    ("listed", "count"), [("", 0), ("0", 1), ("1,0", 2), ("0,0", 1), ("0,9,1", 1), ("-1", 0)]
)
def test_the_visibility_variable_is_read_as_cuda_reads_it(
    chip: Any, monkeypatch: pytest.MonkeyPatch, listed: str, count: int
) -> None:
    monkeypatch.setenv(chip.chip.presentation.visible_env, listed)
    assert visible_count(chip.chip, 2) == count


def test_a_call_is_counted_once_and_only_the_programs_own() -> None:
    counts = tally.Tally()
    function = counts.counted("torch.cuda.is_available", lambda: True)
    function()
    exec("function()", {"function": function, "__name__": "torch.somewhere"})
    assert counts.calls == {"torch.cuda.is_available": 1}


def test_every_function_of_torch_cuda_is_in_the_table() -> None:
    """What a program can call, and PyTorch answers without offramp knowing, is not reported."""
    known = {name.removeprefix("torch.cuda.") for name in tally.table()}
    functions = {
        name
        for name in torch.cuda.__all__
        if callable(getattr(torch.cuda, name, None))
        and not isinstance(getattr(torch.cuda, name), type)
    }
    left = functions - known - NOT_FUNCTIONS
    assert not left, f"not in names.toml: {sorted(left)}"


def test_every_entry_has_a_class_and_a_reason() -> None:
    for entry in tally.table().values():
        assert entry.answer in tally.CLASSES
        assert entry.reason


@pytest.mark.parametrize("name", ["CUDAGraph", "MemPool"])
def test_what_cannot_be_had_is_refused_by_name(chip: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"torch\.cuda\.{name} is not available"):
        getattr(torch.cuda, name)()


@pytest.mark.parametrize("name", sorted(refused()))
def test_packages_of_cuda_kernels_explain_themselves(chip: Any, name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(ImportError, match="Use instead"):
        __import__(name)


def test_a_guarded_import_takes_its_other_way() -> None:
    done = run(
        "import torch\n"
        "try:\n    import flash_attn\nexcept ImportError:\n    print('other way')\n"
        "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    )
    assert done.stdout.split("\n")[:2] == ["other way", "2"]


def test_cuda_sources_are_refused_and_say_so() -> None:
    done = run(
        "import torch\nfrom torch.utils.cpp_extension import CUDAExtension\n"
        "CUDAExtension('x', ['x.cu'])"
    )
    assert done.returncode != 0
    assert "CUDA sources need the chip maker's own compiler" in done.stderr.splitlines()[-1]


def test_a_forked_child_may_not_use_the_chip() -> None:
    done = run(
        "import os, torch\ntorch.ones(1, device='cuda')\npid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n        torch.cuda.init(); torch.ones(1, device='cuda'); os._exit(0)\n"
        "    except RuntimeError as error:\n        os._exit(3 if 'forked' in str(error) else 4)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert done.stdout.strip() == "3"


def test_names_are_put_back_at_the_end() -> None:
    done = run(
        "import torch, offramp\n"
        "names = [n for n in torch.cuda.__all__ if hasattr(torch.cuda, n)]\n"
        "before = {n: getattr(torch.cuda, n) for n in names}\n"
        "lacking = hasattr(torch._C, '_cuda_getDeviceCount'), torch.version.cuda, torch.compile\n"
        "with offramp.use('zhenwu-810e'):\n    assert torch.cuda.is_available()\n"
        "assert not torch.cuda.is_available()\n"
        "after = hasattr(torch._C, '_cuda_getDeviceCount'), torch.version.cuda, torch.compile\n"
        "assert lacking == after, (lacking, after)\n"
        "print([n for n, v in before.items() if getattr(torch.cuda, n) is not v])",
        OFFRAMP_CHIP="",
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_compile_says_what_it_did() -> None:
    done = run(
        "import torch, warnings\nwarnings.simplefilter('ignore')\n"
        "import offramp.device\n"
        "f = torch.compile(lambda x: x.sin() + 1, mode='max-autotune')\n"
        "x = torch.ones(3, device='cuda')\nassert torch.equal(f(x), x.sin() + 1)\n"
        "g = torch.compile(lambda x: x * 2, backend='eager')\nassert torch.equal(g(x), x * 2)\n"
        "import gc\nfrom offramp.identity.tally import Tally\n"
        "[t] = [o for o in gc.get_objects() if type(o) is Tally]\n"
        "print(*(row['requested'] + '>' + row['did'] for row in t.record()['compiled']))"
    )
    assert done.stdout.split() == ["inductor,", "mode=max-autotune>graph-captured", "eager>eager"]


def test_a_chip_that_comes_after_a_backward_pass_is_refused() -> None:
    code = (
        "import torch, offramp\n"
        "torch.ones(1, requires_grad=True).sum().backward()\n"
        "offramp.use('zhenwu-810e')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "came after a backward pass of this process" in done.stderr
