"""Hashes of what a model and a tokenizer are, wherever they came from."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coconut_ds.data.tokens import tokenizer_identity
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import whole


def digest_state(state: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in whatever order they come.

    One tensor at a time is looked at, so a generator may make each as it is asked for.
    """
    digests: dict[str, str] = {}
    for name, tensor in state:
        assert name not in digests, f"{name} comes twice"
        digests[name] = _digest(tensor)
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def content_of(model: PreTrainedModel, ranks: Ranks) -> str | None:
    """Hash of a model's parameters, on rank 0; they may lie in shards, so all ranks must call it."""
    if not ranks.is_first:
        for parameter in model.parameters():
            with whole([parameter]):
                pass
        return None

    def parameters() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            with whole([parameter]):
                yield name, parameter

    return digest_state(parameters())


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of ``tokenizer_identity``."""
    return hashlib.sha256(json.dumps(tokenizer_identity(tokenizer), sort_keys=True, default=str).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy knows no bfloat16; bytes it knows, and shares the memory.
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
