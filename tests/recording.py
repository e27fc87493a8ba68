"""A capturer for the CPU that treats steps as CUDA graphs do: a replay runs no Python and knows only addresses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
REFUSED = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
"""What a stream that is being captured refuses: to read values, and to copy values that Python made."""


class Recorder:
    """Counts what it was asked to do. With ``fails`` no step can be captured."""

    def __init__(self, fails: bool = False) -> None:
        self.warm_ups = self.captures = self.replays = 0
        self._fails = fails

    def warm_up(self, step: Callable[[], None]) -> None:
        self.warm_ups += 1
        step()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        if self._fails:
            raise RuntimeError("this operation is not permitted when the stream is capturing")
        recording = _Recording()
        with recording:
            step()
        recording.undo()

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay


class _Recording(TorchDispatchMode):
    """The operations of one step with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in REFUSED:
            raise RuntimeError(f"{func} is not permitted when the stream is capturing")
        written = _written(func, args, kwargs)
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made | self._before.keys():
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[storage.data_ptr()] = whole, whole.clone()
        result = func(*args, **kwargs)
        if not func.is_view:
            made = [] if written else [each for each in tree_leaves(result) if isinstance(each, Tensor)]
            self._made |= {tensor.untyped_storage().data_ptr() for tensor in made}
            self._operations.append((func, args, kwargs, made))
        return result

    def undo(self) -> None:
        """Takes the effects on older tensors back: capturing runs nothing."""
        for whole, before in self._before.values():
            whole.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        """Runs the operations again, on the same tensors."""
        for func, args, kwargs, made in self._operations:
            again = func(*args, **kwargs)
            if made:
                results = [each for each in tree_leaves(again) if isinstance(each, Tensor)]
                for old, new in zip(made, results, strict=True):
                    old.copy_(new)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
            found.append(value)
    return found
