"""Access to a model's parts, its context length, and a check that weights fit it."""

import re
import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.distributed.zero import whole_shape
from coconut_ds.errors import CheckpointError

CONSTRUCTION = threading.RLock()
"""Held while transformers builds or loads a model. During that time transformers replaces functions of its own and of
torch for the whole process; if two threads do so at once, the models end up without tied weights."""

FULL = "full_attention"
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Types of layers that see only some positions, with the configuration keys that hold their number."""
BUFFERS = re.compile(r"(^|\.)(attn|attention)\.((masked_)?bias|causal_mask)$|rotary\w*\.inv_freq$|(^|\.)position_ids$")
"""Names of causal masks, rotary tables and position numbers, which older versions of transformers stored."""


def embedding_weight(module: nn.Module | None) -> Tensor:
    """The weight [V, D] of an embedding or of a head."""
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor), "an embedding has a weight matrix"
    return weight


def state_size(model: PreTrainedModel) -> int:
    """D, the size of a last hidden state, and of an input embedding.

    It differs from the hidden size of the layers where a model projects its embeddings (``word_embed_proj_dim`` of
    OPT-350M).
    """
    return int(whole_shape(embedding_weight(model.get_input_embeddings()))[-1])


def attention_window(config: PreTrainedConfig) -> int | None:
    """The number of positions that layers with windowed attention see; 0 if it is not known, None without such layers.

    A window of W positions has no effect on sequences of at most W positions.

    Args:
        config: the configuration of the language model (``get_text_config()``).
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        if "local" in (getattr(config, "attention_layers", None) or ()):
            return int(getattr(config, "window_size", None) or 0)
        size = getattr(config, "sliding_window", None)
        return int(size) if size is not None else None
    sizes = [int(getattr(config, key, None) or 0) for kind, key in WINDOWS.items() if kind in kinds]
    return min(sizes, default=None)


def stored_buffers(names: Iterable[str]) -> set[str]:
    """Those of the names that older versions of transformers gave to masks and tables, which models now compute."""
    return {name for name in names if BUFFERS.search(name)}


def refuse_partial(
    where: object, missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any], advice: str
) -> None:
    """Refuses weights that do not fit the model completely, since a partial load would go unnoticed.

    Args:
        where: where the weights come from, for the message.
        missing: names of weights that the model has and the source lacks.
        unexpected: names of weights that only the source has.
        mismatched: names, or tuples that begin with a name, of weights whose shapes differ.
        advice: what to do, for the message.

    Raises:
        CheckpointError: any of the three is not empty; names up to three weights of each.
    """
    found = []
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        names = [str(key[0] if isinstance(key, tuple) else key) for key in keys]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{kind} {', '.join(sorted(names)[:3])}{more}")
    if found:
        raise CheckpointError(f"{where}: the weights do not fit the model ({'; '.join(found)}); {advice}")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder layers of a model, first to last; None if they cannot be identified."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        stack for stack in model.base_model.children() if isinstance(stack, nn.ModuleList) and len(stack) == count
    ]
    return stacks[0] if len(stacks) == 1 else None


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence in positions; None if the configuration does not limit it."""
    return longest_sequence(model.config.get_text_config())


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """The longest sequence of models with this configuration in positions; None if it does not limit them.

    An attention window counts as a limit, because beyond it the latent loop's full attention would be another model.
    """
    limits = (getattr(config, "max_position_embeddings", None), attention_window(config))
    return min((int(limit) for limit in limits if limit), default=None)
