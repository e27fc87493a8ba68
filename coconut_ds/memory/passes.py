"""Measures the memory that the passes of one micro batch take, without using that memory.

The training code itself is run, forward and backward, on fake tensors, which have shapes and types but no data. Every
storage is counted from its allocation until it is freed. So the result includes activations saved for the backward
pass, the growing key/value cache and short-lived temporaries, but not the workspace inside kernels.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PreTrainedConfig

from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Collator
from coconut_ds.model.feed import FEEDS, FeedSpec
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.model.starting import wanted_feed
from coconut_ds.model.support import state_size
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.base import Examples
from coconut_ds.settings import Config

PREFIX, THOUGHTS, REST, LOSS, BACKWARD = "prefix", "thoughts", "rest", "loss", "backward"
PARTS = (PREFIX, THOUGHTS, REST, LOSS, BACKWARD)
"""The part of the computation that allocated a storage: the passes over prefix, thoughts and rest of all views (with
their keys and values); embeddings, head, the objective's own modules, and loss (``loss``); or the backward pass."""
ANY_MARKERS = MarkerIds(0, 1, 2, 3)


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


def build_loop(
    config: Config,
    architecture: PreTrainedConfig,
    rows: int,
    feed: FeedSpec | None,
    dtype: torch.dtype = torch.float32,
    defers: bool = False,
) -> LatentLoop:
    """The loop that a run trains, on the meta device.

    Args:
        config: of the run.
        architecture: the Hugging Face configuration of the model.
        rows: number of rows of the embedding.
        feed: the feed of the checkpoint that the run starts from, if it has one.
        dtype: the type that the model computes in.
        defers: whether weight gradients are deferred (``model/deferred.py``).
    """
    sized = type(architecture).from_dict({**architecture.to_dict(), "vocab_size": rows, "pad_token_id": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(sized, dtype=dtype, attn_implementation="sdpa")
        if config.model.lora.rank:
            add_adapters(model, ANY_MARKERS, config.model.lora)
        spec = feed or wanted_feed(config, model)
        built = None if spec is None else FEEDS[spec.kind](state_size(model), spec.width)
        # A plan for sequences of a given length has no tokenizer.
        auxiliary = objective_of(config).auxiliary(Backbone(model, cast(Any, None), ANY_MARKERS, feed=built))
    for module in (*auxiliary.values(), *([] if built is None else [built])):
        module.to(dtype)
    checkpointing = config.training.activation_checkpointing
    return LatentLoop(model, checkpointing, defers, auxiliary=auxiliary, feed=built).train()


def parameter_counts(loop: LatentLoop) -> tuple[int, int]:
    """Numbers of parameters: in total, and trained."""
    sizes = [(each.numel(), each.requires_grad) for each in loop.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def update_bytes(config: Config, loop: LatentLoop, examples: Examples, width_multiple: int = 1) -> Counter[str]:
    """Bytes by part at the peak of one micro batch, forward and backward, without weights and their gradients.

    Args:
        config: of the run.
        loop: the result of ``build_loop``, which is changed.
        examples: the problems of the micro batch.
        width_multiple: see ``Collator``.
    """
    objective, parallel = objective_of(config), config.parallel
    views = whole_micro_batch(examples)
    batch = objective.collate(Collator(0, parallel, width_multiple), examples, views)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _replace_by_fake_tensors(loop)
        for parameter in loop.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        ledger = LiveBytes()
        joins_rest = loop.model.dtype != torch.float32
        _label_passes(loop.model.base_model, ledger, [_thought_passes(view, parallel, joins_rest) for view in views])
        with ledger:
            loss = objective.loss(loop, batch).sum()
            ledger.part = BACKWARD
            torch.autograd.backward(loss)
        return ledger.peak


def whole_micro_batch(examples: Examples) -> list[MicroBatch]:
    """All problems as one micro batch, in each view."""
    found = []
    for layouts in examples.views:
        size, most = len(layouts), (int(layouts.num_thoughts.max()), int(layouts.num_targets.sum()))
        found.append(MicroBatch(layouts, [1.0] * size, *most, np.arange(size), 1 / size))
    return found


def _thought_passes(view: MicroBatch, parallel: Parallel | None, joins_rest: bool) -> int:
    """Number of passes over thoughts alone; ``joins_rest``: the last thought shares a pass with the rest.

    With ``thinking=looped`` the last pass over all thoughts includes the rest.
    """
    if parallel is not None:
        return max(parallel.num_passes(view.num_thoughts) - (parallel.kind == "looped"), 0)
    return max(view.num_thoughts - 1, 0) if joins_rest else view.num_thoughts


def _replace_by_fake_tensors(loop: nn.Module) -> None:
    """Replaces all meta tensors of the loop by fake tensors on the CPU, in place. Tied parameters stay tied.

    Must be called within a ``FakeTensorMode``.
    """
    replaced: dict[int, Tensor] = {}
    for module in loop.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                module._parameters[name] = replaced.setdefault(id(parameter), new)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _label_passes(body: nn.Module, ledger: LiveBytes, thought_passes: list[int]) -> None:
    """Adds hooks that set ``ledger.part`` in each pass: first the prefix of a view, then its thoughts, then its rest.

    Args:
        body: the model without its head.
        ledger: see ``LiveBytes``.
        thought_passes: for each view, in the order of their passes, the number of passes over thoughts.
    """
    passes, views = 0, iter(thought_passes)
    thoughts = 0

    def begins(module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        nonlocal passes, thoughts
        is_prefix = options["position_ids"] is None
        passes = 0 if is_prefix else passes + 1
        thoughts = next(views, 0) if is_prefix else thoughts
        ledger.part = PREFIX if is_prefix else THOUGHTS if passes <= thoughts else REST

    def ends(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        ledger.part = LOSS

    body.register_forward_pre_hook(begins, with_kwargs=True)
    body.register_forward_hook(ends)
