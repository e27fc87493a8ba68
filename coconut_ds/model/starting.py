"""The model that a training run or an evaluation starts from: the backbone, its tokenizer and a checkpoint's card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coconut_ds.data.sources import Vocabulary
from coconut_ds.data.tokens import build_word_tokenizer, load_tokenizer
from coconut_ds.distributed.zero import in_shards
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import Method
from coconut_ds.model.backbone import Backbone, build_backbone
from coconut_ds.model.card import ModelCard
from coconut_ds.model.checkpoint import load_folder
from coconut_ds.model.feed import Feed, FeedSpec, build_feed
from coconut_ds.model.folder_files import check_folder_files
from coconut_ds.model.reference_state import load_state_dict
from coconut_ds.model.support import state_size
from coconut_ds.model.tables import recompute_tables
from coconut_ds.settings import Config


def starting_backbone(config: Config, source: Vocabulary, engine: Mapping[str, Any] | None = None) -> Backbone:
    """The model and tokenizer to start from: ``run.load_model_path`` if it is set, else what ``model`` describes.

    Args:
        config: the configuration.
        source: the data set, whose words make up the tokenizer under ``model.tokenizer=dataset``.
        engine: DeepSpeed's configuration under ZeRO-3, so that weights are loaded in shards; None: they are loaded
            whole. Random weights are always drawn whole on each rank, so that they do not depend on the engine.

    Raises:
        CheckpointError: the checkpoint is missing or does not fit.
        ModelError: see ``build_backbone``.
    """
    path = config.run.load_model_path
    if path is None and config.model.model_init != "pretrained":
        engine = None
    with in_shards(engine):
        backbone = _load(config, source)
    if engine is not None:
        recompute_tables(backbone.model)
    return backbone


def _load(config: Config, source: Vocabulary) -> Backbone:
    path, pause = config.run.load_model_path, METHODS[config.method.kind].pauses
    if path is None:
        return build_backbone(config.model, starting_tokenizer(config, source), pause)
    place = Path(path)
    if not place.exists():
        raise CheckpointError(
            f"run.load_model_path={path}: no such file or folder; set it to a checkpoint folder or to a state dict"
        )
    if place.is_dir():
        return load_folder(place, config.model.attn_implementation, pause=pause)
    return load_state_dict(place, config.model, starting_tokenizer(config, source), pause)


def card_of(config: Config) -> ModelCard | None:
    """The card of the checkpoint in ``run.load_model_path``; None if there is no checkpoint or it has no card."""
    path = config.run.load_model_path
    return ModelCard.read(Path(path)) if path is not None and Path(path).is_dir() else None


def card_at(place: Path, method: str | None, n_thoughts: int | None, chat_template: bool = False) -> ModelCard:
    """The card of a checkpoint, with ``n_thoughts`` thoughts if given; without a card, one made of the arguments.

    Raises:
        CheckpointError: there is no checkpoint, an argument contradicts its card, or an argument is missing.
    """
    if not place.exists():
        raise CheckpointError(f"checkpoint={place}: no such folder; set checkpoint to a model folder")
    card = ModelCard.read(place) if place.is_dir() else None
    if card is not None:
        if method not in (None, card.method):
            raise CheckpointError(f"{place}: was trained with method={card.method}; leave method={method} out")
        if chat_template and not card.chat_template:
            raise CheckpointError(f"{place}: was trained without a chat template; leave chat_template=true out")
        return card if n_thoughts is None else card.with_latents(n_thoughts)
    if place.is_dir():
        check_folder_files(place)
    if method is None:
        raise CheckpointError(
            f"{place}: has no coconut.json, so it does not say how it thinks; set method=cot, or another and n_thoughts"
        )
    if n_thoughts is None and METHODS[method].has_latents:
        raise CheckpointError(
            f"{place}: has no coconut.json, so it does not say how many thoughts it needs; set n_thoughts too"
        )
    # Without a card the stage is not known: assume that a model with thoughts writes no steps, and others write all.
    stage = 1 if n_thoughts else 0
    card = ModelCard(
        method, stage, num_thoughts=0, c_thought=0, max_latent_stage=0, marker_ids={}, chat_template=chat_template
    )
    return card.with_latents(n_thoughts or 0)


def wanted_feed(config: Config, model: PreTrainedModel) -> FeedSpec | None:
    """The feed that the configuration group ``objective`` asks for; None: it asks for none."""
    objective = config.objective
    if objective.feed == "identity":
        return None
    return FeedSpec(objective.feed, objective.feed_width or state_size(model))


def starting_feed(backbone: Backbone, wanted: FeedSpec | None, method: Method, seed: int) -> Feed | None:
    """The feed that a run trains: that of the checkpoint in ``run.load_model_path``, or a new one.

    Args:
        backbone: what ``starting_backbone`` returned; its ``feed`` comes from the checkpoint.
        wanted: the feed that the objective needs; None: it needs none. A checkpoint's feed is then trained further.
        method: of the run.
        seed: of the random weights of a new feed.

    Raises:
        ConfigError: the method has no thoughts that could go through a feed, or the objective needs another feed than
            that of the checkpoint.
    """
    loaded = backbone.feed
    spec = wanted if loaded is None else loaded.spec
    if spec is None:
        return None
    if not method.has_latents or method.pauses:
        source = "the objective" if loaded is None else "the checkpoint in run.load_model_path"
        raise ConfigError(
            f"method={method.name}: has no thoughts, but {source} has a feed ({spec}), which thoughts go through "
            "before they are fed back; set a method with thoughts, such as method=coconut"
        )
    if loaded is None:
        return build_feed(spec, state_size(backbone.model), seed)
    if wanted not in (None, spec):
        raise ConfigError(
            f"run.load_model_path: the feed of this checkpoint is {spec}, the objective needs {wanted}; set the "
            "objective's values to those of the checkpoint, or start from a checkpoint without a feed"
        )
    return loaded


def starting_tokenizer(config: Config, source: Vocabulary) -> PreTrainedTokenizerBase:
    """The tokenizer that the configuration group ``model`` describes."""
    name = config.model.tokenizer or config.model.model_id
    return build_word_tokenizer(source.vocabulary()) if name == "dataset" else load_tokenizer(name)
