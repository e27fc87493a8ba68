"""Computes operations on the strict device, refuses those that mix devices, and reports host syncs."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from strict_device.syncs import Syncs, number
from strict_device.tensors import DeviceTensor, is_there

aten = torch.ops.aten
CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """While it is entered, tensors on the strict device can be made and computed with.

    Each operation runs on the CPU, on the values of its tensors. A tensor on the CPU among them is refused unless it is
    a single number, which torch accepts on any device.
    """

    def __init__(self, syncs: Syncs) -> None:
        super().__init__()
        self._syncs = syncs
        self._special: dict[Any, Callable[..., Any]] = {
            aten._local_scalar_dense.default: self._read,
            aten.equal.default: self._equal,
            aten._to_copy.default: self._to_copy,
            aten.copy_.default: self._copy,
            aten.index.Tensor: self._index,
            aten.index_put.default: self._index,
            aten.index_put_.default: self._index,
            aten.nonzero.default: self._nonzero,
        }

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Switching torch's compiler off around each operation would take longer than most operations; none is compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if DeviceTensor in types:
            special = self._special.get(func)
            return special(func, *args, **kwargs) if special else compute(func, args, kwargs)
        if not is_there(kwargs.get("device")):
            return func(*args, **kwargs)
        if func is aten._to_copy.default:
            self._report_copy(func, args[0], kwargs.get("non_blocking", False))
        return DeviceTensor(func(*args, **{**kwargs, "device": CPU}))

    def _read(self, func: Any, tensor: Tensor) -> Any:
        self._syncs.report("reads", func)
        return number(tensor.dtype, Syncs.value)

    def _equal(self, func: Any, one: Tensor, other: Tensor) -> bool:
        self._syncs.report("reads", func)
        return True

    def _nonzero(self, func: Any, tensor: Tensor) -> Any:
        self._syncs.report("reads", func)
        return compute(func, (tensor,), {}, shape_is_known=True)

    def _to_copy(self, func: Any, tensor: DeviceTensor, **options: Any) -> Tensor:
        place = options.get("device")
        if place is None or is_there(place):
            made: Tensor = compute(func, (tensor,), options)
            return made
        if tensor.numel():
            self._syncs.report("reads", func)
        copied: Tensor = func(tensor.host, **options)
        return copied.fill_(number(copied.dtype, Syncs.value))

    def _copy(self, func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not isinstance(target, DeviceTensor):
            if source.numel():
                self._syncs.report("reads", func)
            return target.fill_(number(target.dtype, Syncs.value))
        if not isinstance(source, DeviceTensor):
            # Single numbers are filled in, not copied.
            if source.dim():
                self._report_copy(func, source, non_blocking)
            source = DeviceTensor(source)
        return compute(func, (target, source), {})

    def _index(self, func: Any, tensor: Tensor, indices: Any, *more: Any, **options: Any) -> Any:
        """Indexing copies indices on the CPU to the device, and looks for the places of the true values of masks."""
        if not isinstance(tensor, DeviceTensor):
            raise mixed(func)
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and not isinstance(index, DeviceTensor):
                self._syncs.report("copies", func)
                index = DeviceTensor(index)
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._syncs.report("reads", func)
            found.append(index)
        return compute(func, (tensor, found, *more), options, shape_is_known=True)

    def _report_copy(self, func: Any, source: Tensor, non_blocking: bool) -> None:
        if source.numel() and not (non_blocking and source.is_pinned()):
            self._syncs.report("copies", func)


def mixed(func: Any) -> RuntimeError:
    """The error for tensors on two devices."""
    return RuntimeError(
        f"{func}: expected all tensors on the same device, found some on the strict device and some on cpu"
    )


@cache
def _check(func: Any) -> None:
    """Refuses operations for which the host must wait, and for which ``Operations`` has no method.

    Raises:
        DynamicOutputShapeException: the shape of the output depends on values.
        DataDependentOutputException: the output is a value.
    """
    if torch.Tag.dynamic_output_shape in func.tags:
        raise DynamicOutputShapeException(func)
    if torch.Tag.data_dependent_output in func.tags:
        raise DataDependentOutputException(func)


def compute(func: Any, args: Any, options: dict[str, Any], shape_is_known: bool = False) -> Any:
    """Runs an operation on the values of its arguments.

    Raises:
        RuntimeError: an argument is on the CPU and not a single number.
    """
    if not shape_is_known:
        _check(func)
    owners: dict[int, DeviceTensor] = {}
    first = args[0] if args else None

    def host(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            owners[id(value.host)] = value
            return value.host
        if isinstance(value, Tensor) and (value.dim() or (func._schema.is_mutable and value is first)):
            raise mixed(func)
        return [host(each) for each in value] if isinstance(value, list | tuple) else value

    def there(value: Any) -> Any:
        if isinstance(value, Tensor):
            owner = owners.get(id(value))
            if owner is None:
                return DeviceTensor(value)
            assert owner.shape == value.shape, f"{func} changes the shape of a tensor in place"
            return owner
        return type(value)(map(there, value)) if isinstance(value, list | tuple) else value

    place = options.get("device")
    hosts = {name: host(value) for name, value in options.items()}
    if place is not None:
        hosts["device"] = CPU
    made = func(*map(host, args), **hosts)
    return made if place is not None and not is_there(place) else there(made)
