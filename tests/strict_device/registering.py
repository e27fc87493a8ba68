"""Registers the strict device with torch, and makes the context in which there are tensors on it."""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from strict_device.building import library
from strict_device.operations import Operations
from strict_device.syncs import Syncs
from strict_device.tensors import NAME


@cache
def device() -> torch.device:
    """The strict device. The first call compiles its library if necessary and registers it, for the whole process.

    Raises:
        NoCompiler: see ``building.library``.
    """
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
    }
    vars(module).update(functions)
    torch._register_device_module(NAME, module)
    nn.Module._apply = _apply
    return torch.device(NAME, 0)


@contextmanager
def strict() -> Iterator[Syncs]:
    """Within this context, tensors can be on the device; yields what counts and refuses host syncs."""
    device()
    syncs = Syncs()
    # In one thread: autograd would run the backward pass in one of its own, which neither coverage nor exceptions like.
    with (
        Operations(syncs),
        _Construction(),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield syncs


class _Construction(TorchFunctionMode):
    """``torch.tensor`` makes tensors on the CPU and then moves them, as it does for a GPU.

    It would not ask ``Operations`` to move them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        with torch.device("cpu"):
            made = func(*args, **{**kwargs, "device": None})
        return made.to(kwargs["device"])


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``module._apply``, behind ``module.to``: torch's own makes new parameters of tensors such as ``DeviceTensor``."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for parameter in module._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                parameter.data = change(parameter)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module
