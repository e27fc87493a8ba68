"""Model folders, which evaluation, serving and Hugging Face users load without any further argument.

A folder contains the weights as ``save_pretrained`` writes them (safetensors), the tokenizer, and the card
``coconut.json`` (method, stage, number of thoughts, marker ids, provenance, feed). ``README.md`` is for people
(``readme.py``). If thoughts go through a feed, its weights are in the subfolder ``latent/`` (``feed_file.py``). A
folder is written under a temporary name and then renamed, so a folder of the final name is always complete. Weights
that do not fit the model completely are an error; they are never loaded in part. State dicts of the reference
implementation are read by ``reference_state.py``.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as transformers_logging

from coconut_ds.data.tokenizer_files import read_tokenizer, write_tokenizer
from coconut_ds.data.tokens import check_tokenizer
from coconut_ds.distributed.zero import is_sharded, whole_shape
from coconut_ds.errors import CheckpointError, CoconutError
from coconut_ds.files import SEAL, damage, put_in_place, seal
from coconut_ds.hub import FAULTS, first_line
from coconut_ds.model.attention import check_attention, check_attention_used
from coconut_ds.model.backbone import Backbone, add_marker_rows
from coconut_ds.model.card import CARD, ModelCard, marker_table
from coconut_ds.model.compatibility import check_config, check_model_type
from coconut_ds.model.feed_file import FEED_FILE, read_feed, write_feed
from coconut_ds.model.folder_files import check_folder_files, read_object, stored_shapes
from coconut_ds.model.generation_config import check_generation_config
from coconut_ds.model.readme import Origin, write_readme
from coconut_ds.model.support import CONSTRUCTION, refuse_partial, state_size, stored_buffers
from coconut_ds.runs.edits import advice_on_damage
from coconut_ds.runs.folder import ENGINE


def save_model(
    folder: Path,
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    feed: Mapping[str, Tensor] | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes a model folder, which replaces any previous folder of that name only once it is complete.

    Args:
        folder: where to write.
        model: the model, for its configuration and the form of its weights.
        state: the model's state dict, with whole tensors.
        tokenizer: the model's tokenizer.
        card: the content of ``coconut.json``.
        feed: the state dict of the feed that the card names, with whole tensors; None if it names none.
        origin: what the model card (README.md) says about the training; None: nothing.

    Raises:
        CheckpointError: the folder cannot be written; the previous one is unchanged.
    """
    temporary = folder.with_name(f".{folder.name}.part.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_model(temporary, model, state, tokenizer, card, feed, origin)
        seal(temporary)
        put_in_place(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder}: could not be written ({error}); the previous content is untouched") from error


def write_model(
    folder: Path,
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    feed: Mapping[str, Tensor] | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes the files of a model into an existing folder; the arguments are those of ``save_model``.

    ``state`` has whole tensors, although under ZeRO-3 the parameters of ``model`` are sharded.
    """
    assert (card.feed is None) == (feed is None), "card and weights must agree on whether there is a feed"
    with _without_progress_bars():
        model.save_pretrained(folder, state_dict=dict(state))
    write_tokenizer(tokenizer, folder)
    if feed is not None:
        write_feed(folder, feed)
    (folder / CARD).write_text(json.dumps(card.as_dict(), indent=2) + "\n", encoding="utf-8")
    write_readme(folder, card, origin)


def check_target(place: Path) -> None:
    """Refuses to replace anything else than a model folder.

    Raises:
        CheckpointError: ``place`` exists and is neither a model folder of this project nor an empty folder.
    """
    if place.exists() and not (place / CARD).is_file() and (not place.is_dir() or any(place.iterdir())):
        raise CheckpointError(f"{place}: exists and is not a model folder; save to another folder, or remove it")


def load_folder(
    folder: Path, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32, pause: bool = False
) -> Backbone:
    """Loads the backbone in a model folder.

    Markers that the folder's tokenizer lacks (that of a plain Hugging Face model) are added, see ``add_marker_rows``.

    Args:
        folder: the model folder.
        attn_implementation: see ``model.attn_implementation``.
        dtype: the type of the weights.
        pause: whether to add ``<|pause|>`` as well.

    Raises:
        CheckpointError: files are missing or damaged, or do not fit each other; weights that are not safetensors
            count as missing.
        ModelError: the attention kernel is not available, the latent loop does not support the model, or the tokenizer
            cannot read text.
    """
    check_attention(attn_implementation)
    before = _states_of_weights(folder)
    _check_files(folder)
    check_model_type(folder, read_object(folder / "config.json"))
    check_generation_config(folder)
    tokenizer, card = _load_tokenizer(folder), ModelCard.read(folder)
    try:
        check_config(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        model, report = _load_weights(folder, attn_implementation, dtype)
        feed = read_feed(folder, None if card is None else card.feed, state_size(model), dtype)
    except CoconutError:
        raise
    except FAULTS as error:
        raise CheckpointError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    if _states_of_weights(folder) != before:
        raise CheckpointError(
            f"{folder}: a program wrote to its weights while they were read; load it again once that has ended"
        )
    check_attention_used(model, attn_implementation)
    _check_weights(folder, model, report)
    backbone = add_marker_rows(model, tokenizer, pause=pause)
    if card is not None and not card.marker_ids.items() <= marker_table(backbone.markers).items():
        raise CheckpointError(
            f"{folder}: {CARD} has the marker ids {card.marker_ids}, the tokenizer has "
            f"{marker_table(backbone.markers)}; these files are not of one checkpoint"
        )
    backbone.feed = feed
    return backbone


def _states_of_weights(folder: Path) -> list[tuple[int, int, int]]:
    """What changes when a program writes to a folder's weights, or replaces them."""
    files = [*sorted(folder.glob("*.safetensors")), folder / FEED_FILE]
    states = [path.stat() for path in files if path.is_file()]
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _check_files(folder: Path) -> None:
    """Refuses a folder that is damaged or not a model folder."""
    if found := _damage(folder):
        raise CheckpointError(f"{folder}: is damaged: {'; '.join(found[:3])}; {advice_on_damage(folder)}")
    check_folder_files(folder)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = read_tokenizer(folder, local_files_only=True)
    except FAULTS as error:
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded: {first_line(error)}; copy the files of the tokenizer that the "
            "model was trained with into this folder"
        ) from error
    check_tokenizer(tokenizer, f"{folder}: its tokenizer", "set eos_token in tokenizer_config.json")
    return tokenizer


def _load_weights(
    folder: Path, attn_implementation: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model in a folder, and transformers' report of weights that are missing, unexpected or of another shape."""
    with CONSTRUCTION, _without_progress_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # Weights of another shape are then reported by name, and refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            # Weights that are mapped to a file change, or end the process (SIGBUS), when a program writes to it.
            disable_mmap=True,
        )
    model, report = loaded
    return model, report


def _check_weights(folder: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuses weights that do not fit the model completely. Masks and tables that models now compute do not count."""
    unexpected, mismatched = set(report["unexpected_keys"]), report["mismatched_keys"]
    if any(map(is_sharded, model.parameters())):
        unexpected, mismatched = _unfit_for_shards(folder, model)
    refuse_partial(
        folder,
        report["missing_keys"],
        unexpected - stored_buffers(unexpected),
        mismatched,
        "config.json describes another model than these weights belong to; copy or download the folder again",
    )


def _unfit_for_shards(folder: Path, model: PreTrainedModel) -> tuple[set[str], list[str]]:
    """Names of stored weights that the model lacks, and of those with another shape.

    When transformers loads sharded parameters, it reports neither. The names are changed as transformers changes them:
    it adds or removes the name of the base model, and merges the weights of experts.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    wanted, unexpected, mismatched = model.state_dict(keep_vars=True), set(), []
    for name, shape in stored_shapes(folder).items():
        own, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if own not in wanted:
            unexpected.add(name)
        elif merged is None and tuple(whole_shape(wanted[own])) != shape:
            mismatched.append(name)
    return unexpected, mismatched


def _damage(folder: Path) -> list[str]:
    """The faults of a folder that has a manifest; empty if it is sound, or has no manifest and no ``engine/``.

    The folder is a checkpoint of a run, or a copy of one without its ``engine/``. The model's files are read and
    compared with their hashes. The engine's files, which a model does not need, are only checked by size.
    """
    of_a_run = (folder / ENGINE).is_dir()
    if not of_a_run and not (folder / SEAL).exists():
        return []
    found = damage(folder, hashes=True, without=ENGINE)
    return found or (damage(folder) if of_a_run else [])


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hides transformers' progress bars for the files of a model, which would garble those of a run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
