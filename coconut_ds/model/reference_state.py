"""State dicts of the reference implementation (its files ``checkpoint_N``), read with ``weights_only=True``.

A file that does not fit the model is an error, never a partial load.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.tokens import add_markers
from coconut_ds.distributed.zero import whole, whole_shape
from coconut_ds.errors import CheckpointError
from coconut_ds.model.backbone import Backbone, add_marker_rows, model_from_scratch
from coconut_ds.model.support import refuse_partial
from coconut_ds.settings import ModelConfig

REFERENCE_PREFIX = "base_causallm."
REFERENCE_DUPLICATE = "embedding.weight"
"""The reference's wrapper holds the input embedding a second time under this name."""

STORED_MASKS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that older versions of transformers stored beside GPT-2's weights."""


def load_state_dict(
    path: Path, settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, pause: bool = False
) -> Backbone:
    """The backbone of ``settings`` with the weights of a state dict file.

    Keys may carry the reference's ``base_causallm.``; the number of embedding rows is the file's. Markers that the
    file has no rows for are added as for pretrained weights.

    Raises:
        CheckpointError: the file is no state dict, or not of this architecture.
    """
    state = _read_state(path)
    rows = int(state[_embedding_key(path, state)].shape[0])
    without = len(tokenizer)
    add_markers(tokenizer)
    if rows not in (without, len(tokenizer)):
        raise CheckpointError(
            f"{path}: has rows for {rows} tokens; expected {without}, the tokenizer's, or {len(tokenizer)} with the "
            "thought markers, as the reference implementation writes them (a padded vocabulary has none of them in a "
            "known place: save such a model with save_pretrained, and load the folder); if the tokenizer is another "
            "model's, set model.tokenizer"
        )
    model = model_from_scratch(settings, tokenizer, rows)
    tied = set(model.all_tied_weights_keys or {})
    if REFERENCE_DUPLICATE in state:
        if not torch.equal(state[REFERENCE_DUPLICATE], state[_embedding_key(path, state)]):
            raise CheckpointError(f"{path}: {REFERENCE_DUPLICATE} differs from the model's input embedding")
        del state[REFERENCE_DUPLICATE]
    wanted = model.state_dict(keep_vars=True)
    state = {key: value for key, value in state.items() if key in wanted or not key.endswith(STORED_MASKS)}
    refuse_partial(
        path,
        [key for key in wanted if key not in state and key not in tied],
        [key for key in state if key not in wanted],
        [key for key in state if key in wanted and state[key].shape != whole_shape(wanted[key])],
    )
    with torch.no_grad():
        for key, value in state.items():
            with whole([wanted[key]], changed=True):
                wanted[key].copy_(value)
    return add_marker_rows(model, tokenizer, rows, pause)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        # Mapped, so that ranks beside each other share what they read; the oldest format cannot be.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a state dict ({str(error).splitlines()[0]})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, expected a state dict (names to tensors)")
    return {str(key).removeprefix(REFERENCE_PREFIX): value for key, value in state.items()}


def _embedding_key(path: Path, state: Mapping[str, Tensor]) -> str:
    for key in ("transformer.wte.weight", "model.embed_tokens.weight"):
        if key in state:
            return key
    shown = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"{path}: no input embedding found; expected transformer.wte.weight or model.embed_tokens.weight (with or "
        f"without {REFERENCE_PREFIX}), found {shown}, …"
    )
