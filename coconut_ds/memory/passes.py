"""Measures the memory that the passes of one micro batch take, without using that memory.

The training code itself is run, forward and backward, on fake tensors, which have shapes and types but no data. Every
storage is counted from its allocation until it is freed. So the result includes activations saved for the backward
pass, the growing key/value cache and short-lived temporaries, but not the workspace inside kernels.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PreTrainedConfig

from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.lora import add_adapters
from coconut_ds.settings import LoraConfig

PREFIX, THOUGHTS, REST, LOSS, BACKWARD = "prefix", "thoughts", "rest", "loss", "backward"
PARTS = (PREFIX, THOUGHTS, REST, LOSS, BACKWARD)
"""The part of the computation that allocated a storage: the passes over prefix, thoughts and rest (with their keys and
values); embeddings, head and loss (``loss``); or the backward pass."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages that were allocated within this context, by part.

    The caller sets ``part`` to the part that is being computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = LOSS
        self.now: Counter[str] = Counter()
        """Live bytes of each part."""
        self.peak: Counter[str] = Counter()
        """``now`` at the moment when its total was largest."""
        self._known: dict[int, tuple[str, int]] = {}
        """Part and bytes of each live storage."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, Tensor)}
        tree_map_only(Tensor, lambda tensor: self._note(tensor, before), result)
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)
        return result

    def _note(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        # Views and in-place results allocate nothing.
        if key in self._known or key in before:
            return
        self._known[key] = self.part, storage.nbytes()
        self.now[self.part] += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.now[part] -= size


def parameter_counts(config: PreTrainedConfig, rows: int, lora: LoraConfig) -> tuple[int, int]:
    """Numbers of parameters of a model whose embedding has ``rows`` rows: in total, and trained."""
    sizes = [(each.numel(), each.requires_grad) for each in _model(config, rows, lora, torch.float32).parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def update_bytes(
    config: PreTrainedConfig,
    rows: int,
    lora: LoraConfig,
    layouts: Sequence[Layout],
    dtype: torch.dtype,
    checkpointing: bool = False,
    parallel: Parallel | None = None,
    defers: bool = False,
    width_multiple: int = 1,
) -> Counter[str]:
    """Bytes by part at the peak of one micro batch, forward and backward, without weights and their gradients.

    Args:
        config: the Hugging Face configuration of the model.
        rows: number of rows of the embedding.
        lora: the adapters.
        layouts: the sequences of the micro batch.
        dtype: the type that the model computes in.
        checkpointing: whether activation checkpointing is on.
        parallel: how all thoughts are computed at once; None: they are computed one after another.
        defers: whether weight gradients are deferred (``model/deferred.py``).
        width_multiple: see ``Collator``.
    """
    model = _model(config, rows, lora, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _replace_by_fake_tensors(model)
        loop = LatentLoop(model, checkpointing, defer_gradients=defers)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        num_thoughts = max(layout.num_thoughts for layout in layouts)
        batch = Collator(0, parallel, width_multiple)(layouts, [1.0] * len(layouts), num_thoughts)
        ledger = LiveBytes()
        # In half precision, the last thought and the rest share a pass.
        sequential = num_thoughts if dtype == torch.float32 else max(num_thoughts - 1, 0)
        _label_passes(model.base_model, ledger, parallel.num_passes(num_thoughts) if parallel else sequential)
        with ledger:
            loss = latent_loss(loop, *batch)
            ledger.part = BACKWARD
            torch.autograd.backward(loss)
        return ledger.peak


def _model(config: PreTrainedConfig, rows: int, lora: LoraConfig, dtype: torch.dtype) -> Any:
    """The model on the meta device, with its adapters."""
    config = type(config).from_dict({**config.to_dict(), "vocab_size": rows, "pad_token_id": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        if lora.rank:
            add_adapters(model, MarkerIds(0, 1, 2), lora)
    return model.train()


def _replace_by_fake_tensors(model: nn.Module) -> None:
    """Replaces all meta tensors of the model by fake tensors on the CPU, in place. Tied parameters stay tied.

    Must be called within a ``FakeTensorMode``.
    """
    replaced: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                module._parameters[name] = replaced.setdefault(id(parameter), new)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _label_passes(body: nn.Module, ledger: LiveBytes, thought_passes: int) -> None:
    """Adds hooks that set ``ledger.part`` in each pass: first the prefix, then the thoughts, then the rest."""
    passes = 0

    def begins(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal passes
        passes += 1
        ledger.part = PREFIX if passes == 1 else THOUGHTS if passes <= 1 + thought_passes else REST

    def ends(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        ledger.part = LOSS

    body.register_forward_pre_hook(begins)
    body.register_forward_hook(ends)
