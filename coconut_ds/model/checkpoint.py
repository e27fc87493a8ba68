"""Model folders: what evaluation, serving and any Hugging Face user load, with no other argument.

A folder holds ``save_pretrained`` safetensors, the tokenizer and ``coconut.json`` (method, stage, number of thoughts,
marker ids, provenance). It appears whole: written under a temporary name, then renamed. State dicts of the reference
implementation (``checkpoint_N``) are read too, with ``weights_only=True``. A file that does not fit is an error, never
a partial load.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from coconut_ds.distributed.zero import is_sharded
from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL, damage, put_in_place, seal
from coconut_ds.model.attention import check_attention
from coconut_ds.model.backbone import Backbone, add_marker_rows
from coconut_ds.model.card import CARD, ModelCard, marker_table
from coconut_ds.model.support import CONSTRUCTION, refuse_partial
from coconut_ds.runs.folder import ENGINE


def save_model(
    folder: Path,
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
) -> None:
    """Writes a model folder that appears whole, in the place of what stood there.

    Raises:
        CheckpointError: it cannot be written; what was there is untouched.
    """
    temporary = folder.with_name(f".{folder.name}.part.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_model(temporary, model, state, tokenizer, card)
        seal(temporary)
        put_in_place(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder}: could not be written ({error}); what was there is untouched") from error


def write_model(
    folder: Path,
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
) -> None:
    """Writes the files of a model into a folder. ``state`` holds full tensors; under ZeRO-3 the model has shards."""
    with _without_bars():
        model.save_pretrained(folder, state_dict=dict(state))
    tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def load_folder(
    folder: Path, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32, pause: bool = False
) -> Backbone:
    """The backbone in a model folder, with exactly the weights that stand there.

    Markers that the folder's tokenizer lacks (a plain Hugging Face model) are added as the backbone does, ``<|pause|>``
    only where ``pause`` asks for it.

    Raises:
        CheckpointError: files are missing, unsafe, or do not fit each other.
    """
    check_attention(attn_implementation)
    if found := _damage(folder):
        raise CheckpointError(f"{folder}: is damaged: {'; '.join(found[:3])}; use another checkpoint of the run")
    if not (folder / "config.json").is_file():
        inside = sorted(path.name for path in folder.glob("checkpoint_*"))
        hint = f"; it holds {', '.join(inside)}: name one of them" if inside else ""
        raise CheckpointError(f"{folder}: is no model folder (config.json is missing){hint}")
    try:
        with CONSTRUCTION, _without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded: {error}") from error
    unexpected = report["unexpected_keys"]
    if any(map(is_sharded, model.parameters())):
        # transformers does not look for them when it loads in shards.
        unexpected = _stored_names(folder) - model.state_dict().keys()
    refuse_partial(folder, report["missing_keys"], unexpected, report["mismatched_keys"])
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no end-of-sequence token")
    backbone = add_marker_rows(model, tokenizer, pause=pause)
    card = ModelCard.read(folder)
    if card is not None and not card.marker_ids.items() <= marker_table(backbone.markers).items():
        raise CheckpointError(
            f"{folder}: {CARD} gives the markers {card.marker_ids}, the tokenizer {marker_table(backbone.markers)}; "
            "these files are not of one checkpoint"
        )
    return backbone


def _stored_names(folder: Path) -> set[str]:
    """Names of all weights in a model folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _damage(folder: Path) -> list[str]:
    """What is wrong with a checkpoint of a run, or with a model that was copied out of one without its ``engine/``.

    The model's files are read and compared with their hashes; those of the engine are only looked for.
    """
    of_a_run = (folder / ENGINE).is_dir()
    if not of_a_run and not (folder / SEAL).exists():
        return []
    found = damage(folder, hashes=True, without=ENGINE)
    return found or (damage(folder) if of_a_run else [])


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' own bars over the files of one model would tear those of a run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
