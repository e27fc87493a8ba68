"""The backbone: a Hugging Face causal language model and its tokenizer, both with the thought markers added.

Most decoder-only families work (GPT-2, GPT-NeoX, Llama, Qwen and others). A model must have a key/value cache, layers
that look up a causal attention function, and logits that are its head applied to the last hidden state; others are
refused (``compatibility.py``). An attention window counts as the model's context length.

The embedding row of a marker that the pretrained weights lack is initialized once, after they are loaded: with the row
of ``<<`` if the tokenizer has that token, else with the mean of the pretrained rows. The same is done to the output
embedding if it is not tied. Pretrained rows are never changed. Models from scratch keep their random rows.

A special token that was added to the tokenizer but not to the weights, such as ``[PAD]``, gets the mean of the
pretrained rows: its logit is then the mean of theirs, so greedy decoding never chooses it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from coconut_ds.data.encoding import describe_added, token_names
from coconut_ds.data.tokens import MARKERS, PAUSE, add_markers
from coconut_ds.distributed.zero import whole, whole_shape
from coconut_ds.errors import ModelError
from coconut_ds.files import shell_word
from coconut_ds.formats import TEXT, Format
from coconut_ds.hub import load_by_name
from coconut_ds.methods.base import MarkerIds
from coconut_ds.model.attention import check_attention, check_attention_used
from coconut_ds.model.compatibility import check_config, check_model_type, check_supported
from coconut_ds.model.feed import FEED_PREFIX, Feed
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.model.folder_files import check_folder_files, read_object
from coconut_ds.model.generation_config import check_generation_config, stated_ends
from coconut_ds.model.precision import cast
from coconut_ds.model.support import CONSTRUCTION, embedding_weight, refuse_partial
from coconut_ds.settings import ModelConfig

SEED_TOKEN = "<<"
"""Its embedding row initializes the markers, as in the reference implementation."""


@dataclass
class Backbone:
    """A model and its tokenizer, both of which know the thought markers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    markers: MarkerIds
    without_rows: tuple[str, ...] = ()
    """Special tokens of the tokenizer that the weights had no embedding row for."""
    feed: Feed | None = None
    """What a thought goes through before it is fed back; None: it is fed back as it is."""

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text: the one that training puts there, then those of the generation config."""
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *stated_ends(self.model)]))

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights and buffers by name: those of the model, then those of the feed."""
        yield from self.model.state_dict().items()
        if self.feed is not None:
            yield from self.feed.state_dict(prefix=f"{FEED_PREFIX}.").items()

    def cast(self, dtype: torch.dtype, device: torch.device) -> None:
        """Rounds all weights to ``dtype`` in place; see ``precision.cast``."""
        for part in (self.model, self.feed):
            if part is not None:
                cast(part, dtype, device)

    @property
    def notes(self) -> list[str]:
        """What the user should know about how this tokenizer and this model treat text; often nothing."""
        return self.notes_on(TEXT)

    def notes_on(self, format: Format) -> list[str]:
        """``notes`` about text in this format."""
        if format.chat_template:
            notes = ["each question goes through the tokenizer's chat template"]
        else:
            notes = describe_added(self.tokenizer)
        if len(self.eos_ids) > 1:
            notes.append(f"each of these tokens ends a text: {token_names(self.tokenizer, self.eos_ids)}")
        if self.without_rows:
            notes.append(
                f"the weights had no embedding row for {', '.join(self.without_rows)}; it gets the mean of all rows"
            )
        return notes


def build_backbone(settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, pause: bool = False) -> Backbone:
    """Builds the backbone that ``settings`` describe, in fp32 on the CPU.

    Args:
        settings: the configuration group ``model``. Random weights are drawn from torch's global generator, so seed
            that first.
        tokenizer: the model's tokenizer; the markers are added to it in place.
        pause: whether the method needs ``<|pause|>``.

    Raises:
        ModelError: the weights, the configuration or the attention kernel are not available, or the latent loop does
            not support the model.
        CheckpointError: the weights do not fit the model.
    """
    check_attention(settings.attn_implementation)
    if settings.model_init == "scratch":
        markers, _ = add_markers(tokenizer, pause)
        return Backbone(model_from_scratch(settings, tokenizer, _num_rows(tokenizer)), tokenizer, markers)
    check_generation_config(Path(settings.model_id))
    load = partial(
        AutoModelForCausalLM.from_pretrained,
        dtype=torch.float32,
        attn_implementation=settings.attn_implementation,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    advice = "set model.model_id to a local folder, or model=gpt2_scratch_small to start from random weights"
    folder = Path(settings.model_id)
    if folder.is_dir():
        check_folder_files(folder)
        if (folder / FEED_FILE).exists():
            raise ModelError(
                f"model.model_id={settings.model_id}: the thoughts of this checkpoint go through a feed ({FEED_FILE}), "
                f"which model.model_id does not load; set run.load_model_path={shell_word(folder)} instead"
            )
        check_model_type(folder, read_object(folder / "config.json"))
    check_config(load_by_name(AutoConfig.from_pretrained, settings.model_id, "model.model_id", advice))
    with CONSTRUCTION:
        loaded: Any = load_by_name(load, settings.model_id, "model.model_id", advice)
    model, report = loaded
    check_attention_used(model, settings.attn_implementation)
    # Weights that this model does not use (those of another head) are ignored; none may be missing.
    refuse_partial(
        settings.model_id, report["missing_keys"], (), report["mismatched_keys"], "set model.model_id to another model"
    )
    return add_marker_rows(model, tokenizer, pause=pause)


def model_from_scratch(settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> PreTrainedModel:
    """A model with random weights, of the architecture in ``settings``, whose embedding has ``num_rows`` rows.

    Raises:
        ModelError: the configuration cannot be built, or the latent loop does not support the model.
    """
    config = architecture(settings)
    config.update(
        {
            "vocab_size": num_rows,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
    )
    try:
        with CONSTRUCTION:
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=settings.attn_implementation
            )
    except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError) as error:
        raise ModelError(
            f"model.model_config_overrides={settings.model_config_overrides}: no model can be built from this "
            f"{type(config).__name__} ({type(error).__name__}: {error})"
        ) from error
    check_supported(model)
    return model


def architecture(settings: ModelConfig) -> PreTrainedConfig:
    """The Hugging Face configuration that ``settings`` describe, overrides applied.

    If ``model_id`` is a bare model type such as ``gpt2``, nothing is downloaded.

    Raises:
        ModelError: the configuration is not available, or an override is not one of its keys.
    """
    name, overrides = settings.model_id, settings.model_config_overrides
    is_type = "/" not in name and not Path(name).is_dir()
    if is_type and name not in CONFIG_MAPPING:
        raise ModelError(f"model.model_id={name}: no such model type; set a folder, a hub name or a model type")

    def load(**changes: Any) -> PreTrainedConfig:
        if is_type:
            return AutoConfig.for_model(name, **changes)
        advice = "set a local folder or a bare model type such as gpt2"
        return load_by_name(partial(AutoConfig.from_pretrained, **changes), name, "model.model_id", advice)

    default = load()
    unknown = [key for key in overrides if not hasattr(default, key)]
    if unknown:
        raise ModelError(
            f"model.model_config_overrides: {type(default).__name__} has no key {', '.join(unknown)}; "
            f"its keys include {', '.join(sorted(default.to_dict())[:40])}. If the option "
            "model=… sets the others, for its own model_id, type model.model_config_overrides={} before your own keys, "
            "for example model.model_config_overrides={} model.model_config_overrides.num_hidden_layers=2"
        )
    try:
        return load(**overrides)
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.model_config_overrides: {error}") from error


def add_marker_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows_known: int | None = None, pause: bool = False
) -> Backbone:
    """Adds the markers that are missing to the tokenizer and to the embeddings, both in place.

    Args:
        model: the model, with its pretrained weights.
        tokenizer: the tokenizer that the model was trained with.
        rows_known: number of embedding rows that were trained; by default as many as the tokenizer needs, since some
            embeddings have unused rows after those of the tokenizer.
        pause: whether ``<|pause|>`` is needed too.

    Raises:
        ModelError: the latent loop does not support the model, or the tokenizer is not that of the weights: it has far
            fewer tokens than the embedding has rows, or more, apart from added special tokens.
    """
    check_supported(model)
    rows_there = whole_shape(embedding_weight(model.get_input_embeddings()))[0]
    known = min(rows_there, _num_rows(tokenizer)) if rows_known is None else rows_known
    without_rows = _check_rows(tokenizer, rows_there)
    markers, _ = add_markers(tokenizer, pause)
    if _num_rows(tokenizer) > rows_there:
        model.resize_token_embeddings(_num_rows(tokenizer), mean_resizing=False)
    seed = tokenizer.get_vocab().get(SEED_TOKEN)
    _initialise_rows(model, [marker for marker in markers.all() if marker >= known], known, seed)
    _initialise_rows(model, list(without_rows.values()), known, None)
    return Backbone(model, tokenizer, markers, tuple(without_rows))


def _num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of embedding rows that the tokenizer needs: more than it has tokens, if some ids are not used."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _check_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """Refuses a tokenizer that does not fit an embedding with this number of rows.

    Returns the special tokens, other than the markers, that have no row.
    """
    vocabulary = tokenizer.get_vocab()
    own = {name: index for name, index in vocabulary.items() if name not in (*MARKERS, PAUSE)}
    extra = {name: index for name, index in own.items() if index >= rows}
    added = tokenizer.added_tokens_decoder
    fits = 2 * len(vocabulary) >= rows and all(index in added and added[index].special for index in extra.values())
    if not fits:
        raise ModelError(
            f"the tokenizer has {len(own)} tokens, the weights have rows for {rows}, so they do not belong together "
            f"(tokenizer: {tokenizer.name_or_path or type(tokenizer).__name__}); use the tokenizer that the weights "
            "were trained with (in a model folder, replace the tokenizer's files), or give the weights as many rows as "
            "the tokenizer has tokens (resize_token_embeddings in transformers)"
        )
    return extra


@torch.no_grad()
def _initialise_rows(model: PreTrainedModel, rows: list[int], known: int, seed: int | None) -> None:
    """Sets embedding rows to row ``seed``, or to the mean of the ``known`` first rows if there is none."""
    if not rows:
        return
    weights = [embedding_weight(model.get_input_embeddings()), embedding_weight(model.get_output_embeddings())]
    for weight in {id(weight): weight for weight in weights}.values():
        with whole([weight], changed=True):
            value = weight[seed].clone() if seed is not None else weight[:known].mean(dim=0)
            weight[rows] = value
