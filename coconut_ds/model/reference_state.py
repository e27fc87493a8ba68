"""Loads state dicts of the reference implementation (its files ``checkpoint_N``), with ``weights_only=True``.

A file that does not fit the model completely is an error; it is never loaded in part.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    return backbone_of(path, read_state(path), settings, tokenizer, pause)


def backbone_of(
    where: Path,
    named: Mapping[str, Tensor],
    settings: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    pause: bool = False,
) -> Backbone:
    """The backbone with the tensors ``named`` of a file or folder ``where``; see ``load_state_dict``.

    Raises:
        CheckpointError: the tensors are not those of this architecture.
    """
    state = {key.removeprefix(REFERENCE_PREFIX): value for key, value in named.items()}
    embedding = embedding_key(where, state)
    rows = int(state[embedding].shape[0])
    without_markers = len(tokenizer)
    add_markers(tokenizer)
    _check_rows(where, rows, without_markers, len(tokenizer))
    model = model_from_scratch(settings, tokenizer, rows)
    if REFERENCE_DUPLICATE in state:
        if not torch.equal(state[REFERENCE_DUPLICATE], state[embedding]):
            raise CheckpointError(f"{where}: {REFERENCE_DUPLICATE} differs from the model's input embedding")
        del state[REFERENCE_DUPLICATE]
    fill(where, model, state, "set the model options that they were trained with")
    return add_marker_rows(model, tokenizer, rows, pause)


@torch.no_grad()
def fill(where: Path, model: PreTrainedModel, state: dict[str, Tensor], advice: str) -> None:
    """Copies a state dict into a model. Masks and tables that models now compute are removed from ``state``.

    Raises:
        CheckpointError: the tensors do not fit the model completely.
    """
    tied, wanted = dict(model.all_tied_weights_keys or {}), model.state_dict(keep_vars=True)
    for key, source in tied.items():
        if key in state and source in state and not torch.equal(state[key], state[source]):
            raise CheckpointError(f"{where}: {key} and {source} differ, but the model has one matrix for both")
    for key in stored_buffers(state) - wanted.keys():
        del state[key]
    refuse_partial(
        where,
        [key for key in wanted if key not in state and key not in tied],
        [key for key in state if key not in wanted],
        [key for key in state if key in wanted and state[key].shape != whole_shape(wanted[key])],
        advice,
    )
    for key, value in state.items():
        with whole([wanted[key]], changed=True):
            wanted[key].copy_(value)


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


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a pickle of torch, by name. No code in it runs: only tensors are read (``weights_only``).

    Raises:
        CheckpointError: it is not a state dict, or holds anything else than tensors.
    """
    try:
        # Memory-mapped, so that the ranks of a machine share the file's pages; torch's oldest format cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a state dict ({str(error).splitlines()[0]})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f" with the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise CheckpointError(
            f"{path}: contains {type(state).__name__}{keys}, expected a state dict that maps names to tensors"
        )
    return {str(key): value for key, value in state.items()}


def _check_rows(path: Path, rows: int, without_markers: int, with_markers: int) -> None:
    """Refuses an embedding that has neither as many rows as the tokenizer had tokens, nor as it has with markers."""
    if rows not in (without_markers, with_markers):
        raise CheckpointError(
            f"{path}: has embedding rows for {rows} tokens; expected {without_markers}, as many as the tokenizer has, "
            f"or {with_markers}, which includes the thought markers that the reference implementation adds. If this "
            "tokenizer belongs to another model, set model.tokenizer. If the vocabulary is padded, the rows of the "
            "markers are unknown: save the model with save_pretrained, and load that folder"
        )


def embedding_key(path: Path, state: Mapping[str, Tensor]) -> str:
    """The name of the input embedding in a state dict."""
    for key in ("transformer.wte.weight", "model.embed_tokens.weight"):
        if key in state:
            return key
    shown = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"{path}: no input embedding found; expected transformer.wte.weight or model.embed_tokens.weight (with or "
        f"without {REFERENCE_PREFIX}), found {shown}, …"
    )
