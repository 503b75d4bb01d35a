"""Who is at work: tells the tape which module, optimizer or data loader the program is in.

Modules are named as their root names them; a root is a module that is called from outside of any
that is known. Backward passes need nothing here: the native tape knows which module's forward pass
made each node of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim import optimizer as optimizers

from offramp.names import Names

OTHER, OPTIMIZER, DATA = 0, 3, 4  # phases, as on the tape
BEGIN, END = 0, 1
STEP, PASS = "optimizer.step", "backward"  # marks


class Attribution:
    """Hooks on modules and optimizers, in place from construction until `remove`.

    As long as the program makes no optimizer, each backward pass is marked, and then
    `after_pass` is called.
    """

    def __init__(
        self,
        core: Any,
        names: Names,
        before_step: Callable[[Any], None],
        after_step: Callable[[Any], None],
        after_pass: Callable[[], None],
    ) -> None:
        self._core = core
        self._names = names
        self._before_step, self._after_step = before_step, after_step
        self._modules: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._stack: list[int] = []
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._begin_step),
            optimizers.register_optimizer_step_post_hook(self._end_step),
        ]
        self._has_optimizer = False
        self._put_back = self._watch_passes(after_pass)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._put_back()

    def _watch_passes(self, after_pass: Callable[[], None]) -> Callable[[], None]:
        made, passed = torch.optim.Optimizer.__init__, torch.autograd.backward

        @wraps(made)
        def make(*args: Any, **kwargs: Any) -> None:
            self._has_optimizer = True
            made(*args, **kwargs)

        @wraps(passed)
        def backward(*args: Any, **kwargs: Any) -> None:
            passed(*args, **kwargs)
            if not self._has_optimizer:
                for end in (BEGIN, END):
                    self._core.note_mark(self._core.current_device(), self._names.number(PASS), end)
                after_pass()

        def put_back() -> None:
            torch.optim.Optimizer.__init__ = made  # type: ignore[method-assign]
            torch.autograd.backward = passed

        torch.optim.Optimizer.__init__ = make  # type: ignore[method-assign]
        torch.autograd.backward = backward
        return put_back

    # What is compiled is one piece: a compiler that reads a module's code finds nothing here.

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        number = self._modules.get(module)
        if number is None:
            number = self._name(module)
        self._stack.append(self._core.current_module())
        self._core.enter_module(number)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._stack:
            self._core.enter_module(self._stack.pop())

    def _name(self, root: nn.Module) -> int:
        title = type(root).__name__
        for path, module in root.named_modules():
            if module not in self._modules:
                self._modules[module] = self._names.number(path or title)
        return self._modules[root]

    def _begin_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._before_step(optimizer)
        self._core.note_mark(self._core.current_device(), self._names.number(STEP), BEGIN)
        self._core.enter_phase(OPTIMIZER)

    def _end_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._core.enter_phase(OTHER)
        self._core.note_mark(self._core.current_device(), self._names.number(STEP), END)
        self._after_step(optimizer)
