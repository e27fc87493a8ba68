"""Tables that a model computes from its configuration and does not store, such as the frequencies of rotary positions.

A model that is built in shards (ZeRO-3) for bf16 computes them within DeepSpeed's ``zero.Init``, which casts every new
floating point tensor to bf16. Rotary frequencies lose 0.3 % of their value by that, half a radian at position 300, and
an evaluation of the checkpoint, which loads the model whole, would use other tables than the training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, PreTrainedModel

from coconut_ds.model.support import CONSTRUCTION


@torch.no_grad()
def recompute_tables(model: PreTrainedModel) -> None:
    """Replaces all floating point buffers that are not in the state dict by those of a newly built model, in place.

    Call it outside of ``in_shards``. The tables keep the device that they are on.
    """
    fresh = _tables(_without_weights(model))
    for name, table in _tables(model).items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, fresh[name].to(table.device))


def _tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """The floating point buffers of a model that its state dict does not contain."""
    stored = model.state_dict().keys()
    return {
        name: buffer for name, buffer in model.named_buffers() if name not in stored and torch.is_floating_point(buffer)
    }


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A new model of the same configuration, whose parameters have shapes but no memory."""
    with CONSTRUCTION, _parameters_on_meta():
        built: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    return built


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within it, all parameters of new modules are on the device ``meta``. Buffers are not changed."""

    def move(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # torch types the hook as one that returns nothing, but documents that it may return another parameter.
    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
