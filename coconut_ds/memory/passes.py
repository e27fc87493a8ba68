"""What the passes of one micro batch hold in memory, found without memory: they run on tensors that have shapes and
types but no content, and each storage is counted from its birth to its death.

It is the code of training that runs, backward pass included, so that what is kept for gradients, what grows with the
key/value cache and what is only there for a moment are all in it. Not in it is what a kernel needs inside itself.
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
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.lora import add_adapters
from coconut_ds.settings import LoraConfig

PREFIX, THOUGHTS, REST, LOSS, BACKWARD = "prefix", "thoughts", "rest", "loss", "backward"
PARTS = (PREFIX, THOUGHTS, REST, LOSS, BACKWARD)
"""Who made what is alive at the peak: passes (keys and values included), embeddings with head and loss, gradients."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made within it, by the part that is named when they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.part = LOSS
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        """``now`` at the moment when its sum was largest."""
        self._known: dict[int, tuple[str, int]] = {}

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
        # Views, and results in place of what was there before.
        if key in self._known or key in before:
            return
        self._known[key] = self.part, storage.nbytes()
        self.now[self.part] += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.now[part] -= size


def parameter_counts(config: PreTrainedConfig, rows: int, lora: LoraConfig) -> tuple[int, int]:
    """Parameters of a model with ``rows`` tokens: all, and those that are trained."""
    sizes = [(one.numel(), one.requires_grad) for one in _model(config, rows, lora, torch.float32).parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def update_bytes(
    config: PreTrainedConfig,
    rows: int,
    lora: LoraConfig,
    layouts: Sequence[Layout],
    dtype: torch.dtype,
    checkpointing: bool = False,
    iterations: int | None = None,
    on_cpu: bool = False,
) -> Counter[str]:
    """Bytes by part at the peak of one micro batch, forward and backward, beside weights and their gradients.

    Args:
        config: of the model.
        rows: of the embedding.
        lora: adapters.
        layouts: the sequences of the micro batch.
        dtype: in which the model computes.
        checkpointing: whether layers forget their activations.
        iterations: passes over all thoughts at once; None: thoughts come one by one.
        on_cpu: whether the sums of gradients are made as on a CPU.
    """
    model = _model(config, rows, lora, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _take_shape(model)
        loop = LatentLoop(model, checkpointing, defer_gradients=on_cpu)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        num_thoughts = max(layout.num_thoughts for layout in layouts)
        batch = collate(layouts, [1.0] * len(layouts), num_thoughts, 0, iterations=iterations)
        ledger = LiveBytes()
        _name_parts(model.base_model, ledger, num_thoughts if iterations is None else min(iterations, num_thoughts))
        with ledger:
            loss = latent_loss(loop, *batch)
            ledger.part = BACKWARD
            torch.autograd.backward(loss)
        return ledger.peak


def _model(config: PreTrainedConfig, rows: int, lora: LoraConfig, dtype: torch.dtype) -> Any:
    config = type(config).from_dict({**config.to_dict(), "vocab_size": rows, "pad_token_id": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        if lora.rank:
            add_adapters(model, MarkerIds(0, 1, 2), lora)
    return model.train()


def _take_shape(model: nn.Module) -> None:
    """Puts tensors of this mode in the place of those without a device; what was shared stays shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), new)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _name_parts(body: nn.Module, ledger: LiveBytes, thought_passes: int) -> None:
    """Has each pass tell the ledger who makes tensors."""
    passes = 0

    def begins(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal passes
        passes += 1
        ledger.part = PREFIX if passes == 1 else THOUGHTS if passes <= 1 + thought_passes else REST

    def ends(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        ledger.part = LOSS

    body.register_forward_pre_hook(begins)
    body.register_forward_hook(ends)
