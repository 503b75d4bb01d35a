"""What a program may rely on under either name of a device: `checks.py NAME` runs them all.

Each function takes the name and the device's module, `torch.cuda` or the maker's. The last line
printed is JSON: name of a check to what went wrong, or null.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import threading
import traceback
import zipfile
from typing import Any

import pytest
import torch


def check_factories(name: str, module: Any) -> None:
    made = [
        torch.zeros(2, device=name),
        torch.tensor([1.0, 2.0], device=f"{name}:0"),
        torch.arange(3, device=torch.device(name)),
        torch.rand(2, device=torch.device(name, 0)),
        torch.full((2,), 3, device=name),
        torch.eye(2, device=name),
        torch.randperm(3, device=name),
        torch.tril_indices(2, 2, device=name),
        torch.hann_window(4, device=name),
        torch.empty_like(torch.ones(2), device=name),
        torch.ones(2, device=name).new_zeros(3),
        torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), device=name, check_invariants=True),
        torch.nn.Linear(2, 2, device=name).weight,
    ]
    assert [str(tensor.device) for tensor in made] == [f"{name}:0"] * len(made)


def check_device_objects(name: str, module: Any) -> None:
    x = torch.ones(2, device=name)
    assert x.device == torch.device(name, 0)
    assert x.device == torch.device(f"{name}:0")
    assert x.device != torch.device(name, 1)
    assert x.device != torch.device("cpu")
    assert {x.device: "found"}[torch.device(name, 0)] == "found"
    assert (x.device.type, x.device.index) == (name, 0)
    assert repr(x.device) == f"device(type='{name}', index=0)"
    assert repr(x) == f"tensor([1., 1.], device='{name}:0')"
    assert pickle.loads(pickle.dumps(x.device)) == x.device
    assert x.type() == f"torch.{name}.FloatTensor"
    assert x.is_cuda == (name == "cuda")
    assert x.untyped_storage().device == x.device


def check_either_name_leads_to_the_device(name: str, module: Any) -> None:
    x = torch.ones(2, device=name)
    for other in ("cuda", torch._C._get_privateuse1_backend_name()):
        assert x.to(other) is x
        assert x.to(torch.device(other, 0)) is x
        assert getattr(x, other)() is x
        assert torch.zeros(1, device=other).device == x.device
        assert x.device == torch.device(other, 0)
        assert hash(x.device) == hash(torch.device(other, 0))


def check_moves(name: str, module: Any) -> None:
    x = torch.ones(2)
    there = x.to(name)
    assert there.to(name) is there
    assert there.to("cpu").device.type == "cpu"
    assert torch.equal(there.to(f"{name}:1").cpu(), x)
    assert there.to(f"{name}:1").get_device() == 1
    assert x.to(there).device == there.device
    assert x.to(0).device == there.device
    assert getattr(x, name)(1).device.index == 1
    assert getattr(x, name)(torch.device(name, 1), non_blocking=True).device.index == 1
    layer = getattr(torch.nn.Linear(2, 2), name)()
    assert layer.weight.device == there.device
    assert torch.nn.Linear(2, 2).to(name, torch.float16).weight.dtype == torch.float16
    leaf = torch.ones(2, requires_grad=True)
    (leaf.to(name) * 3).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3.0, 3.0]


def check_threads(name: str, module: Any) -> None:
    x = torch.ones(2, device=name)
    seen: list[torch.device] = []
    thread = threading.Thread(target=lambda: seen.append((x + 1).device))
    thread.start()
    thread.join()
    assert [str(device) for device in seen] == [f"{name}:0"]


def check_checkpoints(name: str, module: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(3.0, device=name)}, buffer)
    pickled = zipfile.ZipFile(io.BytesIO(buffer.getvalue())).read("archive/data.pkl")
    assert f"{name}:0".encode() in pickled
    wanted: list[tuple[Any, str]] = [
        (None, f"{name}:0"),
        ("cpu", "cpu"),
        (f"{name}:1", f"{name}:1"),
        (torch.device(name), f"{name}:0"),
        (lambda storage, place: getattr(storage, name)(), f"{name}:0"),
    ]
    for place, expected in wanted:
        buffer.seek(0)
        loaded = torch.load(buffer, map_location=place)["x"]
        assert str(loaded.device) == expected
        assert loaded.tolist() == [0.0, 1.0, 2.0]


def check_a_checkpoint_of_the_other_name(name: str, module: Any) -> None:
    own = torch._C._get_privateuse1_backend_name()
    other = own if name == "cuda" else "cuda"
    buffer = io.BytesIO()
    torch.save(torch.ones(2, device=name), buffer)
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.namelist():
            # Pickle keeps a string with its length before it.
            old_tag, new_tag = (bytes([len(tag)]) + b"\0\0\0" + tag for tag in _tags(name, other))
            new.writestr(entry, old.read(entry).replace(old_tag, new_tag))
    changed.seek(0)
    assert str(torch.load(changed).device) == f"{name}:0"


def _tags(name: str, other: str) -> tuple[bytes, bytes]:
    return f"{name}:0".encode(), f"{other}:0".encode()


def check_copies(name: str, module: Any) -> None:
    x = torch.ones(2, device=f"{name}:1")
    assert copy.deepcopy(x).device == x.device
    assert pickle.loads(pickle.dumps(x)).device == x.device
    layer = copy.deepcopy(torch.nn.Linear(2, 2).to(name))
    assert layer.weight.device == torch.device(name, 0)


def check_storages(name: str, module: Any) -> None:
    storage = torch.UntypedStorage(8, device=name)
    assert str(storage.device) == f"{name}:0"
    storage.resize_(0)
    assert storage.nbytes() == 0
    assert storage.is_cuda == (name == "cuda")


def check_generators(name: str, module: Any) -> None:
    generator = torch.Generator(name).manual_seed(1)
    assert generator.device.type == name
    first = torch.rand(3, device=name, generator=generator)
    host = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert first.tolist() == host.tolist()
    torch.manual_seed(2)
    state = module.get_rng_state(f"{name}:0")
    second = torch.rand(3, device=name)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=name), second)
    module.manual_seed_all(2)
    assert torch.equal(torch.rand(3, device=name), second)
    assert len(module.default_generators) == 2


def check_defaults(name: str, module: Any) -> None:
    with torch.device(f"{name}:1"):
        assert torch.ones(1).device == torch.device(name, 1)
    torch.set_default_device(name)
    try:
        assert torch.ones(1).device == torch.device(name, 0)
    finally:
        torch.set_default_device(None)


def check_autocast(name: str, module: Any) -> None:
    x = torch.randn(2, 2, device=name)
    with torch.autocast(name, dtype=torch.bfloat16):
        assert torch.is_autocast_enabled(name)
        assert (x @ x).dtype == torch.bfloat16
        assert (x @ x).softmax(0).dtype == torch.float32
    with torch.autocast(name):
        assert (x @ x).dtype == torch.float16
    assert not torch.is_autocast_enabled(name)
    assert (x @ x).dtype == torch.float32
    scaler = torch.amp.GradScaler(name)
    assert scaler.scale(x.sum()).device == x.device


def check_streams_and_events(name: str, module: Any) -> None:
    stream = module.Stream()
    start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record()
    with module.stream(stream):
        assert module.current_stream() == stream
        end.record()
    stream.wait_stream(module.current_stream())
    module.current_stream().wait_event(end)
    module.synchronize()
    assert start.elapsed_time(end) >= 0
    assert module.current_stream() == module.default_stream()
    assert isinstance(module.current_stream(), module.Stream)
    assert stream.device == torch.device(name, 0)
    generic = torch.Event(name)
    generic.record(module.current_stream())
    assert torch.Stream(f"{name}:1").device == torch.device(name, 1)


def check_memory(name: str, module: Any) -> None:
    module.empty_cache()
    before = module.memory_allocated()
    kept = torch.ones(2**18, device=name)
    assert module.memory_allocated(f"{name}:0") - before == kept.nbytes
    assert module.memory_allocated(torch.device(name, 1)) == 0
    assert module.max_memory_allocated() >= before + kept.nbytes
    assert module.memory_stats()["allocated_bytes.all.current"] == before + kept.nbytes
    free, total = module.mem_get_info()
    assert (total, free) == (2**30, 2**30 - module.memory_reserved())
    module.reset_peak_memory_stats()
    assert module.max_memory_allocated() == module.memory_allocated()
    assert torch.accelerator.memory_allocated() == module.memory_allocated()


def check_out_of_memory(name: str, module: Any) -> None:
    told = f"^{name.upper()} out of memory. Tried to allocate 2.00 GiB."
    with pytest.raises(module.OutOfMemoryError, match=told):
        torch.empty(2**31, dtype=torch.uint8, device=name)


def check_module(name: str, module: Any) -> None:
    assert module.is_available()
    assert module.device_count() == 2
    assert module.get_device_name() == module.get_device_properties(f"{name}:1").name
    assert module.get_device_properties(0).total_memory == 2**30
    assert module.is_bf16_supported()
    assert module.is_initialized()
    assert not module._is_in_bad_fork()
    module.set_device(f"{name}:1")
    assert module.current_device() == 1
    assert torch.ones(1, device=name).device.index == 1
    module.set_device(0)
    with module.device(1):
        assert module.current_device() == 1
    assert module.current_device() == 0
    assert torch.get_device_module(name) is module
    assert torch.accelerator.current_accelerator() == torch.device(name)
    assert torch.get_device_module() is module


def check_pinned_memory(name: str, module: Any) -> None:
    assert torch.ones(2).pin_memory().is_pinned()
    assert torch.ones(2).pin_memory().is_pinned(name)
    assert torch.ones(2, pin_memory=True).is_pinned()
    loader = torch.utils.data.DataLoader(torch.arange(4.0), batch_size=2, pin_memory=True)
    assert [batch.is_pinned() for batch in loader] == [True, True]


def check_compiled(name: str, module: Any) -> None:
    compiled = torch.compile(lambda x: x.sin() + torch.ones(2, device=name))
    assert compiled(torch.zeros(2, device=name)).tolist() == [1.0, 1.0]
    with torch._subclasses.FakeTensorMode():
        assert str((torch.ones(2, device=name) + 1).device) == f"{name}:0"


def check_own_operators(name: str, module: Any) -> None:
    @torch.library.custom_op("check::twice", mutates_args=(), device_types=name)
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert twice(torch.ones(1, device=name)).tolist() == [2.0]
    library = torch.library.Library("check_own", "DEF")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: x * 3, "CUDA")
    assert torch.ops.check_own.thrice(torch.ones(1, device=name)).tolist() == [3.0]


def check_typed_classes(name: str, module: Any) -> None:
    x = torch.cuda.FloatTensor([1.0, 2.0])
    assert x.device == torch.device(name, 0)
    assert torch.cuda.LongTensor(2, 3).shape == (2, 3)
    if name == "cuda":
        assert isinstance(x, torch.cuda.FloatTensor)
        assert not isinstance(x, torch.cuda.HalfTensor)
    assert not isinstance(x, torch.FloatTensor)
    assert torch.ones(2).type("torch.cuda.HalfTensor").dtype == torch.float16
    assert torch.ones(2).type(torch.cuda.HalfTensor).device == x.device


def check_libraries_choose_the_same_name(name: str, module: Any) -> None:
    from accelerate import Accelerator

    assert Accelerator().device.type == name


def main(name: str) -> None:
    if name != "cuda":
        __import__(f"torch_{name}")
    module = getattr(torch, name)
    outcomes: dict[str, str | None] = {}
    for check, function in list(globals().items()):
        if check.startswith("check_"):
            try:
                function(name, module)
                outcomes[check] = None
            except Exception:
                outcomes[check] = traceback.format_exc()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])
