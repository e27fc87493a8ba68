"""Loads state dicts of the reference implementation (its files ``checkpoint_N``), with ``weights_only=True``.

A file that does not fit the model completely is an error; it is never loaded in part.
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
from coconut_ds.files import not_downloaded
from coconut_ds.model.backbone import Backbone, add_marker_rows, model_from_scratch
from coconut_ds.model.support import refuse_partial, stored_buffers
from coconut_ds.settings import ModelConfig

REFERENCE_PREFIX = "base_causallm."
REFERENCE_DUPLICATE = "embedding.weight"
"""The reference implementation's wrapper stores the input embedding a second time under this name."""


def load_state_dict(
    path: Path, settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, pause: bool = False
) -> Backbone:
    """Builds the architecture that ``settings`` describe and loads the weights of a state dict file.

    Names may have the reference implementation's prefix ``base_causallm.``. The embedding gets as many rows as the
    file has; markers that the file has no rows for are then added as for pretrained weights.

    Args:
        path: the file.
        settings: the configuration group ``model``; must describe the architecture of the file.
        tokenizer: the tokenizer that the weights were trained with; the markers are added to it in place.
        pause: whether the method needs ``<|pause|>``.

    Raises:
        CheckpointError: the file is not a state dict, or not of this architecture.
    """
    check_state_file(path)
    state = _read_state(path)
    rows = int(state[_embedding_key(path, state)].shape[0])
    without_markers = len(tokenizer)
    add_markers(tokenizer)
    _check_rows(path, rows, without_markers, len(tokenizer))
    model = model_from_scratch(settings, tokenizer, rows)
    tied = set(model.all_tied_weights_keys or {})
    if REFERENCE_DUPLICATE in state:
        if not torch.equal(state[REFERENCE_DUPLICATE], state[_embedding_key(path, state)]):
            raise CheckpointError(f"{path}: {REFERENCE_DUPLICATE} differs from the model's input embedding")
        del state[REFERENCE_DUPLICATE]
    wanted = model.state_dict(keep_vars=True)
    for key in stored_buffers(state) - wanted.keys():
        del state[key]
    refuse_partial(
        path,
        [key for key in wanted if key not in state and key not in tied],
        [key for key in state if key not in wanted],
        [key for key in state if key in wanted and state[key].shape != whole_shape(wanted[key])],
        "set the model options that they were trained with",
    )
    with torch.no_grad():
        for key, value in state.items():
            with whole([wanted[key]], changed=True):
                wanted[key].copy_(value)
    return add_marker_rows(model, tokenizer, rows, pause)


def check_state_file(path: Path) -> None:
    """Refuses a file that is no state dict of torch, without loading it.

    Raises:
        CheckpointError: says what the file is and what to give instead.
    """
    if fault := not_downloaded(path):
        raise CheckpointError(f"{path}: {fault}")
    if path.suffix in (".safetensors", ".gguf", ".json"):
        raise CheckpointError(
            f"{path}: is not a state dict of torch ({path.suffix}); give a model folder, with config.json, "
            "model.safetensors and a tokenizer, or a state dict"
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        # Memory-mapped, so that the ranks of a machine share the file's pages; torch's oldest format cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a state dict ({str(error).splitlines()[0]})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: contains {type(state).__name__}, expected a state dict that maps names to tensors"
        )
    return {str(key).removeprefix(REFERENCE_PREFIX): value for key, value in state.items()}


def _check_rows(path: Path, rows: int, without_markers: int, with_markers: int) -> None:
    """Refuses an embedding that has neither as many rows as the tokenizer had tokens, nor as it has with markers."""
    if rows not in (without_markers, with_markers):
        raise CheckpointError(
            f"{path}: has embedding rows for {rows} tokens; expected {without_markers}, as many as the tokenizer has, "
            f"or {with_markers}, which includes the thought markers that the reference implementation adds. If this "
            "tokenizer belongs to another model, set model.tokenizer. If the vocabulary is padded, the rows of the "
            "markers are unknown: save the model with save_pretrained, and load that folder"
        )


def _embedding_key(path: Path, state: Mapping[str, Tensor]) -> str:
    """The name of the input embedding in a state dict."""
    for key in ("transformer.wte.weight", "model.embed_tokens.weight"):
        if key in state:
            return key
    shown = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"{path}: no input embedding found; expected transformer.wte.weight or model.embed_tokens.weight (with or "
        f"without {REFERENCE_PREFIX}), found {shown}, …"
    )
