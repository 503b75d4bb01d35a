"""The recorder inside a program: it sees calls of modules, tensors, optimizers and `backward`.

A step is what lies between two forward passes that an optimizer's step separates. Work without
gradients (evaluation) and recomputed forward passes are not recorded.

[Note: never in the way] The recorder changes nothing that the program computes; where it fails it
says so in the file and stops.

[Note: ordinary steps] In a step without details only calls from outside of any module matter:
the others pass by (`_passes_by`), at the price of one more Python call each. PyTorch's hooks for
all modules would cost tenfold, called or not.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

from offramp.record import configuration, rows, sampling, surroundings
from offramp.record.frames import Frame, FrameWriter
from offramp.record.gathering import Gathered, tensors_of
from offramp.record.modules import Modules
from offramp.record.part import Part, path_of_rank
from offramp.record.perturbing import Perturbation
from offramp.record.whole import Whole

MOST_CALLS = 2  # of a module in a step that get rows
_DATA_ELEMENTS = 1 << 18  # of an input, for its checksum
Hook = Callable[..., Any]


def _guarded(hook: Hook) -> Hook:
    """See [Note: never in the way]."""

    @functools.wraps(hook)
    def guarded(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        if self.closed or os.getpid() != self.pid:
            return None
        try:
            with self._whole.unseen():
                return hook(self, *args, **kwargs)
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}")
            return None

    return guarded


class Recorder:
    """Records this process from construction until `close`, or its end."""

    def __init__(self, part: Part) -> None:
        self.part, self.pid, self.closed = part, os.getpid(), False
        self._writer: FrameWriter | None = None
        self._modules = Modules()
        self._names = self._modules.names
        self._perturbs = Perturbation(part.perturb) if part.perturb >= 0 else None
        self._whole = Whole(part)
        self._stack: list[nn.Module] = []
        self._step = 0
        self._full = False
        self._stepped_before: set[int] = set()  # the optimizers of the last step that ended
        self._begin_step()
        self._handles = [
            optimizers.register_optimizer_step_pre_hook(self._before_step),
            optimizers.register_optimizer_step_post_hook(self._after_step),
        ]
        self._put_back = (
            surroundings.watch_calls(self._passes_by, self._begin_call, self._end_call),
            surroundings.watch_backward(self._note_loss, self._note_clip),
        )
        self._optimizers_met: dict[int, Any] = {}
        atexit.register(self.close)

    def close(self) -> None:
        """Write what is left and take all hooks away."""
        if self.closed or os.getpid() != self.pid:
            return
        try:
            if self._writer is not None:
                if self._stepped < self._stepped_before:
                    met, usual = len(self._stepped), len(self._stepped_before)
                    text = f"the program ended within step {self._step}, which is left out: "
                    text += f"{met} of {usual} optimizers had made their step"
                    self._writer.write(Frame("note", {"text": text}))
                elif self._stepped or not self._optimizers_met:
                    self._end_step()
                self._writer.write(Frame("end", {"steps": self._step}))
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}")
        self._stop()

    def give_up(self, why: str) -> None:
        """Say in the file why there is no more, and stop."""
        if self._writer is not None:
            try:
                text = f"the recorder stopped in step {self._step}: {why}"
                self._writer.write(Frame("note", {"text": text}))
            except Exception:
                sys.stderr.write(f"offramp: the recorder stopped: {why}\n")
        else:
            sys.stderr.write(f"offramp: the recorder stopped: {why}\n")
        self._stop()

    def _stop(self) -> None:
        self.closed = True
        self._whole.leave(None)
        for handle in (*self._handles, *self._tensor_hooks):
            handle.remove()
        for put_back in self._put_back:
            put_back()
        atexit.unregister(self.close)
        if self._writer is not None:
            self._writer.close()

    # Steps.

    def _begin_step(self) -> None:
        self._rows: Gathered | None = None
        self._follows = self._perturbs is not None  # every call; see [Note: ordinary steps]
        self._calls: Counter[int] = Counter()
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._settings: list[dict[str, Any]] = []
        self._inputs: list[Tensor] = []
        self._random = ""
        self._tensor_hooks: list[Any] = []
        self._hooked: set[int] = set()
        self._stepped: set[int] = set()
        self._backwards = 0
        self._begun = False

    def _start(self) -> None:
        """The first forward pass of a step begins."""
        self._begun = True
        self._random = hashlib.blake2b(
            torch.get_rng_state().numpy().tobytes(), digest_size=8
        ).hexdigest()
        if not self.part.is_detailed(self._step) or self._full:
            return
        self._rows, self._follows = Gathered(self.part.sample), True
        for root, prefix in self._modules.roots():
            self._add_weights(root, prefix)

    def _add_weights(self, root: nn.Module, prefix: str) -> None:
        if self._rows is None:
            return
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            if tensor.is_floating_point():
                number = self._names.number(prefix + name)
                self._rows.add(tensor, (rows.WEIGHT, number, 0, 0), links=True)

    def _end_step(self) -> None:
        if not (self._begun or self._losses):
            self._begin_step()  # an optimizer that only made its state
            return
        assert self._writer is not None
        for handle in self._tensor_hooks:
            handle.remove()
        if self._rows is not None and not self.part.is_detailed(self._step + 1):
            for number, parameter in self._modules.parameters():
                self._rows.add(parameter, (rows.UPDATED, number, 0, 0))
        arrays = {} if self._rows is None else self._rows.finish()
        if self._rows is not None and self._rows.left_out:
            text = f"step {self._step}: {self._rows.left_out} tensors beyond the most of a step"
            self._writer.write(Frame("note", {"text": text}))
        numbers = sampling.on_host([*self._losses, *self._norms])
        values = [float(v[0]) for v in numbers]
        count = len(self._losses)
        norms = values[count:]
        integers = [t for t in self._inputs if not t.is_floating_point()]
        floats = [t for t in self._inputs if t.is_floating_point()]
        head = {
            "step": self._step,
            "losses": values[:count],
            "gradient_norm": sum(n * n for n in norms) ** 0.5 if norms else None,
            "settings": self._settings,
            "data": configuration.digest(integers, 0) if integers else "",
            "floats": configuration.digest(floats, 0) if floats else "",
            "random": self._random,
            "names": self._names.take_new(),
        }
        self._writer.write(Frame("step", head, arrays))
        for frame in self._whole.frames():
            self._writer.write(frame)
        if not self._full and self._writer.written_bytes > self.part.most_bytes:
            self._full = True
            text = f"no details after step {self._step}: the file has reached its size"
            self._writer.write(Frame("note", {"text": text}))
        self._step += 1
        self._stepped_before = self._stepped
        self._begin_step()

    # Modules.

    def _is_off(self) -> bool:
        return not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1

    def _passes_by(self) -> bool:
        """Whether a call of a module is none that matters; see [Note: ordinary steps]."""
        return (bool(self._stack) and not self._follows) or self._is_off()

    @_guarded
    def _begin_call(self, module: nn.Module, args: Any) -> None:
        if not self._stack:
            self._enter_root(module, args)
        elif module not in self._modules:
            self._learn(self._stack[0])
        number = self._modules.number(module)
        owner = self._modules.number(self._stack[-1]) if self._stack else -1
        self._stack.append(module)
        self._calls[number] += 1
        call = self._calls[number] - 1
        if self._rows is None or number < 0 or call >= MOST_CALLS:
            return
        for place, tensor in enumerate(tensors_of(args)):
            self._add(tensor, (rows.INPUT, number, call, place), owner)
            self._whole.keep(self._step, module, (rows.INPUT, call, place), tensor)
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                self._watch_weight(parameter)
        self._whole.enter(self._step, module, call)

    @_guarded
    def _end_call(self, module: nn.Module, kwargs: Any, output: Any) -> Any:
        if not any(one is module for one in self._stack):
            return None
        while self._stack.pop() is not module:
            pass  # one that was left without a word
        self._whole.leave(module, output)
        if self._is_off():
            return None
        if not self._stack:
            self._add_inputs(kwargs)
        moved = None
        if self._perturbs is not None and not module._modules and output is not None:
            output = moved = self._perturbs.output(output)
        number = self._modules.number(module)
        call = self._calls[number] - 1
        if self._rows is None or number < 0 or call >= MOST_CALLS:
            return moved
        owner = self._modules.number(self._stack[-1]) if self._stack else -1
        for place, tensor in enumerate(tensors_of(kwargs)):
            self._add(tensor, (rows.INPUT, number, call, 100 + place), owner)
        for place, tensor in enumerate(tensors_of(output)):
            self._add(tensor, (rows.OUTPUT, number, call, place), owner)
            self._whole.keep(self._step, module, (rows.OUTPUT, call, place), tensor)
        return moved

    def _enter_root(self, module: nn.Module, args: Any) -> None:
        writer = self._writer or self._open()
        if self._stepped:
            self._end_step()
        is_new = module not in self._modules
        if is_new:
            if self._perturbs is not None:
                self._perturbs.weights(module)
            self._modules.add_root(module)
            self._learn(module)
            writer.write(Frame("model", configuration.model(module, self._modules.prefix(module))))
        if not self._begun:
            self._start()
        elif is_new:
            self._add_weights(module, self._modules.prefix(module))
        self._add_inputs(args)

    def _add_inputs(self, given: Any) -> None:
        """Keep what a root was given, for its checksum; a tensor that has a history is not data."""
        for tensor in tensors_of(given):
            taken = sampling.sample(tensor, _DATA_ELEMENTS)
            if taken is not None and not tensor.requires_grad:
                self._inputs.append(taken)

    def _learn(self, outer: nn.Module) -> None:
        for module, name in self._modules.learn(outer):
            self._whole.name(module, name)

    # Tensors.

    def _add(self, tensor: Tensor, place: tuple[int, int, int, int], owner: int) -> None:
        assert self._rows is not None
        if not tensor.is_floating_point():
            return
        row = self._rows.add(tensor, place, owner=owner, links=True)
        if row < 0 or not tensor.requires_grad or self._modules.weight(tensor) >= 0:
            return
        gathered = self._rows
        if gathered.is_linked(row):
            return
        key = (rows.GRADIENT, place[1], place[2], place[3] + 1000 * (place[0] == rows.INPUT))

        def came_back(gradient: Tensor) -> None:
            if not self.closed and gradient is not None:
                gathered.add(gradient, key, owner=owner, of=row)

        self._tensor_hooks.append(tensor.register_hook(came_back))

    def _watch_weight(self, parameter: Tensor) -> None:
        if id(parameter) in self._hooked or self._rows is None:
            return
        self._hooked.add(id(parameter))
        gathered = self._rows
        number = self._modules.weight(parameter)

        def came_back(gradient: Tensor) -> None:
            if not self.closed and gradient is not None and number >= 0:
                gathered.add(gradient, (rows.WEIGHT_GRADIENT, number, 0, 0))

        self._tensor_hooks.append(parameter.register_hook(came_back))

    # Losses and optimizers.

    @_guarded
    def _note_loss(self, roots: Any) -> None:
        if self._writer is None:
            self._open()
        self._backwards += 1
        for root in tensors_of(roots):
            loss = getattr(root, "_offramp_unscaled", root)
            taken = sampling.sample(loss, 1)
            if loss.numel() == 1 and taken is not None:
                self._losses.append(taken)
                if self._rows is not None:
                    place = (rows.LOSS, self._names.number("loss"), 0, len(self._losses) - 1)
                    self._rows.add(loss, place)

    @_guarded
    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        writer = self._writer or self._open()
        if id(optimizer) in self._stepped and self._backwards:
            self._end_step()  # a program without modules
        if id(optimizer) not in self._optimizers_met:
            self._optimizers_met[id(optimizer)] = optimizer
            writer.write(Frame("optimizer", configuration.optimizer(optimizer)))
        self._settings.append(surroundings.settings(optimizer))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._norms += surroundings.norms(g for p in parameters if (g := p.grad) is not None)
        self._add_gradients(parameters, rows.STEP_GRADIENT)

    @_guarded
    def _note_clip(self, parameters: list[Tensor]) -> None:
        self._add_gradients(parameters, rows.UNCLIPPED)

    def _add_gradients(self, parameters: list[Tensor], what: int) -> None:
        if self._rows is None:
            return
        for place, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            number = self._modules.weight(parameter)
            if number < 0:
                number = self._names.number(f"parameter.{place}")
            self._rows.add(parameter.grad, (what, number, 0, 0))

    @_guarded
    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepped.add(id(optimizer))
        self._backwards = 0

    def _open(self) -> FrameWriter:
        rank, world = surroundings.place()
        path = path_of_rank(self.part.out, rank)
        try:
            writer = FrameWriter(path)
        except FileExistsError:
            writer = FrameWriter(Path(f"{path}.process{os.getpid()}"))
        writer.write(Frame("config", configuration.configuration(self.part, rank, world)))
        self._writer = writer
        return writer


def begin(part: Part | None) -> None:
    """Record this process, where it is to be."""
    if part is not None:
        Recorder(part)
