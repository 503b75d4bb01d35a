"""Tensors as memory: views, storages, copies, files."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("chip")


def test_views_share_memory() -> None:
    x = torch.arange(12.0, device="cuda").view(3, 4)
    for view in (x.t(), x[1:], x.as_strided((2, 2), (4, 1), 1), x.unfold(1, 2, 1), x.view(2, 6)):
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    x.diagonal().zero_()
    assert x.tolist() == [[0, 1, 2, 3], [4, 0, 6, 7], [8, 9, 0, 11]]
    x[:, 0].add_(100)
    assert x.t()[0].tolist() == [100, 104, 108]
    assert x.view(torch.int32).dtype == torch.int32
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        x.t().view(12)


def test_resizing() -> None:
    x = torch.arange(4.0, device="cuda")
    x.resize_(2, 3)
    assert x.flatten()[:4].tolist() == [0, 1, 2, 3]
    assert x.untyped_storage().nbytes() == 24
    y = torch.empty(0, device="cuda")
    torch.add(x, 1, out=y)
    assert y.shape == (2, 3)
    alias = y.view(6)
    y.resize_(10, 10)
    assert alias.data_ptr() == y.data_ptr()
    x.resize_as_(y)
    assert x.shape == y.shape


def test_set_moves_a_tensor_onto_other_memory() -> None:
    x, y = torch.zeros(4, device="cuda"), torch.arange(6.0, device="cuda")
    x.set_(y)
    assert x.data_ptr() == y.data_ptr()
    x.set_(y.untyped_storage(), 2, (2,), (2,))
    assert x.tolist() == [2, 4]
    x.set_()
    assert x.numel() == 0
    x.data = torch.ones(3, device="cuda")
    assert x.tolist() == [1, 1, 1]


def test_storages() -> None:
    x = torch.arange(4, dtype=torch.int16, device="cuda")
    storage = x.untyped_storage()
    assert (storage.device, storage.nbytes()) == (torch.device("cuda", 0), 8)
    assert storage.cpu().tolist() == [0, 0, 1, 0, 2, 0, 3, 0]
    again = storage.clone()
    assert again.data_ptr() != storage.data_ptr()
    storage.fill_(0)
    assert x.tolist() == [0, 0, 0, 0]
    storage.copy_(again.cpu())
    assert x.tolist() == [0, 1, 2, 3]
    storage.resize_(0)
    storage.resize_(8)
    assert storage.nbytes() == 8
    assert torch.UntypedStorage(6, device="cuda:1").device.index == 1


def test_copies_between_chips_and_the_cpu() -> None:
    x = torch.randn(3, 5)
    first = x.to("cuda:0")
    second = first.to("cuda:1", non_blocking=True)
    assert second.device.index == 1
    assert second.data_ptr() != first.data_ptr()
    assert torch.equal(second.cpu(), x)
    assert first.to("cuda:0") is first
    assert torch.empty(5, 3, device="cuda:1").copy_(first.t()).t().equal(second)
    x.copy_(second * 2)
    assert torch.equal(x, (first * 2).cpu())
    pinned = torch.randn(4).pin_memory()
    assert pinned.is_pinned()
    assert not first.is_pinned()
    assert torch.equal(pinned.cuda(non_blocking=True).cpu(), pinned)
    assert first.to(torch.float16, memory_format=torch.contiguous_format).dtype == torch.float16


def test_lazy_conjugates_and_negatives_travel() -> None:
    z = torch.randn(4, dtype=torch.complex64)
    lazy = z.cuda().conj()
    assert lazy.is_conj()
    assert torch.equal(lazy.cpu(), z.conj())
    assert torch.equal((lazy * 2).cpu(), (z.conj() * 2))
    assert lazy.imag.is_neg()
    assert torch.equal(lazy.imag.cpu(), z.conj().imag)
    lazy.mul_(1j)
    assert torch.equal(lazy.cpu(), z.conj() * 1j)


def test_known_zeros_take_part_in_arithmetic() -> None:
    zero = torch._efficientzerotensor((2, 3), device="cuda")
    assert zero._is_zerotensor()
    x = torch.randn(2, 3, device="cuda")
    assert (zero * x)._is_zerotensor()
    assert torch.equal(x + zero, x)
    assert zero.cpu().abs().sum() == 0


def test_deep_copies_and_pickles() -> None:
    base = torch.randn(4, 4, device="cuda:1")
    pair = {"base": base, "row": base[1], "model": torch.nn.Linear(2, 2, device="cuda")}
    copies = (copy.deepcopy(pair), True), (pickle.loads(pickle.dumps(pair)), False)
    for again, shared in copies:  # as on the CPU, pickle writes each tensor's memory by itself
        assert again["base"].device == base.device
        assert torch.equal(again["row"], base[1])
        again["base"].zero_()
        assert (again["row"].abs().sum() == 0) == shared
        assert base.abs().sum() > 0


@pytest.mark.parametrize("where", [None, "cpu", "cuda:1", {"cuda:0": "cuda:1"}])
def test_files(where: Any) -> None:
    state = {"w": torch.randn(3, 3, device="cuda:0"), "h": torch.ones(2), "n": 3}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, map_location=where, weights_only=True)
    expected = {None: "cuda:0", "cpu": "cpu"}.get(where if isinstance(where, str) else None)
    assert str(again["w"].device) == ("cuda:1" if where not in (None, "cpu") else expected or "cpu")
    assert torch.equal(again["w"].cpu(), state["w"].cpu())


def test_sparse_tensors() -> None:
    i, v = torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.tensor([1.0, 2.0, 3.0])
    host = torch.sparse_coo_tensor(i, v, (2, 2), check_invariants=True)
    chip = torch.sparse_coo_tensor(i.cuda(), v.cuda(), (2, 2), check_invariants=True)
    assert chip.device.type == "cuda"
    assert torch.equal(chip.coalesce().values().cpu(), host.coalesce().values())
    dense = torch.randn(2, 3)
    assert torch.equal((chip @ dense.cuda()).cpu(), host @ dense)
    assert torch.equal((chip + chip).to_dense().cpu(), (host + host).to_dense())
    assert torch.equal(chip.cpu().to_dense(), host.to_dense())
    assert torch.equal(host.cuda().to_dense(), chip.to_dense())
    assert chip.t()._nnz() == 3


@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_sparse_tensors() -> None:
    dense = torch.randn(4, 4).relu()
    for layout in (torch.sparse_csr, torch.sparse_csc):
        chip = dense.cuda().to_sparse(layout=layout)
        assert (chip.layout, chip.device.type) == (layout, "cuda")
        assert torch.equal(chip.to_dense().cpu(), dense)
        torch.testing.assert_close((chip @ dense.cuda()).cpu(), dense @ dense)
        assert torch.equal(chip.cpu().to_dense(), dense)
    rows = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([5.0, 6.0]), device="cuda"
    )
    assert rows.to_dense().tolist() == [[0, 5], [6, 0]]


def test_sparse_gradients() -> None:
    table = torch.nn.Embedding(10, 4, sparse=True)
    twin = copy.deepcopy(table).cuda()
    for embedding in (table, twin):
        optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            ids = torch.tensor([[1, 2], [2, 5]], device=embedding.weight.device)
            embedding(ids).square().sum().backward()
            assert embedding.weight.grad.is_sparse
            optimizer.step()
    assert torch.equal(twin.weight.cpu(), table.weight)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    rows = [torch.randn(2, 3), torch.randn(4, 3)]
    chip = torch.nested.nested_tensor([r.cuda() for r in rows], layout=layout)
    host = torch.nested.nested_tensor(rows, layout=layout)
    weight = torch.randn(5, 3)
    assert chip.device.type == "cuda"
    padded = torch.nested.to_padded_tensor
    assert torch.equal(padded(chip * 2, 0.0).cpu(), padded(host * 2, 0.0))
    out = torch.nn.functional.linear(chip, weight.cuda()).unbind()
    expected = torch.nn.functional.linear(host, weight).unbind()
    for mine, other in zip(out, expected, strict=True):
        assert torch.equal(mine.cpu(), other)
