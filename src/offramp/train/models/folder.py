"""Hugging Face folders: weights in and out, under their published names.

Reading: every rank memory-maps the files and converts one layer at a time with transformers' own
rules (experts are stored one by one and held fused), then keeps its slices: beside the model, a
rank needs the memory of one layer in fp32, and ranks of a node share the pages of the files.
Writing: the whole state on one rank's CPU, through transformers' `save_pretrained`.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.errors import UsageError
from offramp.train.models.build import Config, build, need_transformers
from offramp.train.models.initialize import (
    NameOf,
    fill_buffers,
    materialize,
    plain_name,
    stored_tensors,
)
from offramp.train.models.slices import local_indices, local_tensor, take

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LAYER = re.compile(r"^(.*?\.\d+)\.")
_SHOWN = 3  # tensors that an error names


def load_weights(
    model: nn.Module,
    folder: Path | str,
    *,
    device: torch.device | str,
    config: Config | None = None,
    name_of: NameOf = plain_name,
    skip: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill a model, whole or sharded, on the meta device or real, from a local folder.

    config: of the whole model; default: `model.config`. name_of: as for `initialize`. skip: names
    (as in `model`) that the folder need not have, such as adapters. Raises UsageError: no weights
    there, or those of another model (which tensors, which shapes).
    """
    folder = Path(folder)
    config = model.config if config is None else config
    twin = build(config)
    _refuse_foreign(twin, folder)
    materialize(model, device)
    wanted: dict[str, list[torch.Tensor]] = {}
    aliases = _aliases(twin)
    for name, tensor in stored_tensors(model).items():
        if not skip(name):
            whole = name_of(name)
            wanted.setdefault(aliases.get(whole, whole), []).append(tensor)
    filled: set[str] = set()
    with torch.no_grad():
        for name, value in _converted(twin, folder):
            whole = aliases.get(name, name)
            if whole in filled and whole != name:
                continue  # a tied weight that is stored under its other name as well
            filled.add(whole)
            for tensor in wanted.get(whole, ()):
                local_tensor(tensor).copy_(take(value, local_indices(tensor)))
    if lost := wanted.keys() - filled:
        raise UsageError(f"{folder}: lacks {_some(lost)}; expected all weights of {_kind(twin)}")
    fill_buffers(model, config)


def save_folder(
    folder: Path | str,
    config: Config,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.bfloat16,
    write_tokenizer: Callable[[Path], None] | None = None,
    shard_size: str = "5GB",
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, all of it or nothing.

    state: whole CPU tensors under the names of the unwrapped model, tied ones once or more often.
    What transformers keeps in fp32 (the routers of some models) stays in fp32. write_tokenizer
    puts the tokenizer's files into the folder. Raises UsageError where it cannot be written, or
    where the state is not that of the configuration.
    """
    need_transformers()
    folder = Path(folder)
    model = build(copy.deepcopy(config)).to(dtype)
    aliases = _aliases(model)
    _check_state(model, state, aliases)
    exact = _kept_exact(model)
    cast = {
        aliases.get(name, name): value if exact(name) else value.to(dtype)
        for name, value in state.items()
    }
    with replaced(folder) as made, quiet():
        model.save_pretrained(made, state_dict=cast, max_shard_size=shard_size)
        if write_tokenizer is not None:
            write_tokenizer(made)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, or vanishes at an error.

    Raises UsageError where nothing can be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: is no folder, and is not replaced; expected one or a new name")
    made: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        made.chmod(0o755)
        yield made
        old = made.with_name(made.name + "-old")
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"{folder}: cannot be written ({reason}); expected a place with room, where this "
            "user may write"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises UsageError where there is none, or one is lost."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"{index}: cannot be read; expected an index of weights") from error
    else:
        names = [SINGLE]
    files = [folder / name for name in names]
    for path in files:
        if not path.exists():
            raise UsageError(
                f"{path}: not there; expected weights as safetensors "
                f"({SINGLE}, or the files that {INDEX} names)"
            )
    return files


def _converted(twin: Any, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values, whole and in fp32, as transformers' class holds them, a layer at a time."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    mapping = get_model_conversion_mapping(twin)
    with ExitStack() as opened, quiet():
        for slices in _layers(folder, opened):
            loading = LoadStateDictConfig(
                dtype=torch.float32,
                weight_mapping=mapping,  # type: ignore[arg-type]
            )
            info, _ = convert_and_load_state_dict_in_model(twin, slices, loading)
            if info.mismatched_keys or info.conversion_errors:
                raise UsageError(_mismatch(twin, folder, info))
            # transformers' own exceptions: layers that predict further tokens, old buffers.
            twin._adjust_missing_and_unexpected_keys(info)
            if extra := [name for name in info.unexpected_keys if name.endswith(".weight")]:
                raise UsageError(
                    f"{folder}: holds another model's weights: {_some(extra)} is not in "
                    f"{_kind(twin)}"
                )
            for module_path, module in twin.named_modules():
                for tensors in (module._parameters, module._buffers):
                    for key, value in tensors.items():
                        if value is None or not hasattr(value, "_is_hf_initialized"):
                            continue
                        yield f"{module_path}.{key}" if module_path else key, value.detach()
                        empty = torch.empty_like(value, device="meta")
                        is_parameter = tensors is module._parameters
                        tensors[key] = nn.Parameter(empty, False) if is_parameter else empty


def _layers(folder: Path, opened: ExitStack) -> Iterator[dict[str, Any]]:
    """Stored tensors, not yet read, grouped by layer; those outside of layers one by one."""
    from safetensors import SafetensorError, safe_open

    groups: dict[str, dict[str, Any]] = {}
    for path in weight_files(folder):
        try:
            file = opened.enter_context(safe_open(path, framework="pt", device="cpu"))
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                match = _LAYER.match(name)
                group = groups.setdefault(match[1] if match else name, {})
                group[name] = file.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path}: damaged, or no safetensors file ({error})") from error
    while groups:
        yield groups.pop(next(iter(groups)))


def _refuse_foreign(twin: Any, folder: Path) -> None:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read; expected a Hugging Face folder") from error
    if found != twin.config.model_type:
        raise UsageError(
            f"{folder}: holds weights of a {found!r} model; expected those of {_kind(twin)}"
        )


def _mismatch(twin: Any, folder: Path, info: Any) -> str:
    if not info.mismatched_keys:
        return f"{folder}: {_some(info.conversion_errors)} cannot be converted to {_kind(twin)}"
    name, found, expected = min(info.mismatched_keys)
    more = len(info.mismatched_keys) - 1
    others = f" (and {more} more of its layer)" if more else ""
    return (
        f"{folder}: holds another model's weights: {name} is {tuple(found)} there, and "
        f"{tuple(expected)} in {_kind(twin)}{others}"
    )


def _check_state(model: Any, state: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {aliases.get(name, name): tuple(value.shape) for name, value in state.items()}
    if unknown := sorted(found.keys() - expected.keys()):
        raise UsageError(f"the state has {_some(unknown)}, which {_kind(model)} has not")
    needed = {aliases.get(name, name) for name in expected}
    if missing := sorted(needed - found.keys()):
        raise UsageError(f"the state lacks {_some(missing)} of {_kind(model)}")
    for name, shape in found.items():
        if shape != expected[name]:
            raise UsageError(f"{name} is {shape}; expected {expected[name]} in {_kind(model)}")


def _aliases(model: nn.Module) -> dict[str, str]:
    """Each tied name's first name; others are not in it."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            names[name] = first[id(parameter)]
    return names


def _kept_exact(model: Any) -> Callable[[str], bool]:
    patterns = sorted(model._keep_in_fp32_modules_strict)
    found = re.compile("|".join(rf"(?:^|\.){re.escape(p)}(?:\.|$)" for p in patterns) or r"(?!)")
    return lambda name: bool(found.search(name))


def _kind(model: Any) -> str:
    config = model.config
    return (
        f"{type(model).__name__} ({config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"vocabulary {config.vocab_size})"
    )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
