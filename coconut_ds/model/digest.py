"""Hashes of the content of models, which do not depend on where they were loaded from."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import whole
from coconut_ds.model.feed import FEED_PREFIX, Feed


def digest_state(state: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors; their order does not matter.

    Reads one tensor at a time, so ``state`` may be a generator that makes each tensor on demand.
    """
    digests: dict[str, str] = {}
    for name, tensor in state:
        assert name not in digests, f"{name} appears twice"
        digests[name] = _digest(tensor)
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def digest_parameters(model: PreTrainedModel, ranks: Ranks, feed: Feed | None = None) -> str | None:
    """Hash of the parameters of a model and its feed (see ``digest_state``) on rank 0, None on other ranks.

    The parameters may be sharded (ZeRO-3), so all ranks must call this together.
    """
    named = [*model.named_parameters(), *(() if feed is None else feed.named_parameters(FEED_PREFIX))]
    if not ranks.is_first:
        for _, parameter in named:
            with whole([parameter]):
                pass
        return None

    def parameters() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in named:
            with whole([parameter]):
                yield name, parameter

    return digest_state(parameters())


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has no bfloat16, so view the memory as bytes.
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
