"""Model folders: what evaluation, serving and any Hugging Face user load, with no other argument.

A folder holds ``save_pretrained`` safetensors, the tokenizer and ``coconut.json`` (method, stage, number of thoughts,
marker ids, provenance). It appears whole: written under a temporary name, then renamed. State dicts of the reference
implementation (``checkpoint_N``) are read too, with ``weights_only=True``. A file that does not fit is an error, never
a partial load.
"""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from coconut_ds.data.tokens import MARKERS, PAUSE, add_markers
from coconut_ds.distributed.zero import is_sharded, whole, whole_shape
from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL, damage, put_in_place, seal
from coconut_ds.formats import FORMATS, TEXT, Format
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method
from coconut_ds.model.attention import check_attention
from coconut_ds.model.backbone import Backbone, add_marker_rows, model_from_scratch
from coconut_ds.model.support import CONSTRUCTION, refuse_partial
from coconut_ds.runs.folder import ENGINE
from coconut_ds.settings import ModelConfig

CARD = "coconut.json"
REFERENCE_PREFIX = "base_causallm."
REFERENCE_DUPLICATE = "embedding.weight"
"""The reference's wrapper holds the input embedding a second time under this name."""


STORED_MASKS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that older versions of transformers stored beside GPT-2's weights."""


@dataclass(frozen=True)
class ModelCard:
    """How a checkpoint thinks: the content of ``coconut.json``."""

    method: str
    stage: int
    num_thoughts: int
    """Thoughts at inference."""
    c_thought: int
    max_latent_stage: int
    marker_ids: dict[str, int]
    num_pauses: int = 0
    """Pause tokens at inference."""
    tokens_per_epoch: int = 8
    format: str = TEXT.name
    """A name of ``formats``."""
    iterations: int | None = None
    """Passes over all thoughts at once (Jacobi); None: thoughts come one by one."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: epoch, global_step, accuracy, stage switches, versions, configuration."""

    @classmethod
    def of(
        cls,
        method: Method,
        stage: int,
        spec: CurriculumSpec,
        format: str,
        marker_ids: dict[str, int],
        provenance: dict[str, Any] | None = None,
        iterations: int | None = None,
    ) -> "ModelCard":
        """The card of a model that was trained up to ``stage``."""
        latents = method.num_latents(stage, None, spec)
        thoughts, pauses = (0, latents) if method.pauses else (latents, 0)
        return cls(
            method.name,
            stage,
            thoughts,
            spec.c_thought,
            spec.max_latent_stage,
            marker_ids,
            pauses,
            spec.tokens_per_epoch,
            format,
            iterations,
            provenance or {},
        )

    @property
    def num_latents(self) -> int:
        """Thoughts or pauses at inference."""
        return self.num_thoughts + self.num_pauses

    def with_latents(self, count: int) -> "ModelCard":
        """The same with another number of thoughts, or of pauses where the method pauses.

        With fewer than it was trained to, the model writes more steps: those of an earlier stage.
        """
        fewer = METHODS[self.method].has_curriculum and self.c_thought and count < self.num_latents
        changed = replace(self, stage=count // self.c_thought) if fewer else self
        if METHODS[self.method].pauses:
            return replace(changed, num_pauses=count)
        return replace(changed, num_thoughts=count)

    @property
    def spec(self) -> CurriculumSpec:
        """What layouts need to know; the number of latents at inference is the card's own."""
        return CurriculumSpec(self.c_thought, self.max_latent_stage, tokens_per_epoch=self.tokens_per_epoch)

    @property
    def text_format(self) -> Format:
        """What ``format`` names."""
        return FORMATS[self.format]

    @classmethod
    def read(cls, folder: Path) -> "ModelCard | None":
        """The card of a model folder; None for a plain Hugging Face folder.

        Raises:
            CheckpointError: it is there and cannot be read.
        """
        path = folder / CARD
        if not path.is_file():
            return None
        try:
            card = TypeAdapter(cls).validate_json(path.read_text(encoding="utf-8"), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CheckpointError(f"{path}: is no {CARD} of this project ({where}: {first['msg']})") from error
        if card.method not in METHODS:
            raise CheckpointError(
                f"{path}: method {card.method!r} is unknown here; expected one of {', '.join(sorted(METHODS))}"
            )
        if card.format not in FORMATS:
            raise CheckpointError(
                f"{path}: format {card.format!r} is unknown here; expected one of {', '.join(FORMATS)}"
            )
        return card


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


def marker_table(markers: MarkerIds) -> dict[str, int]:
    """Names and ids of the markers, for the card."""
    return dict(zip((*MARKERS, PAUSE), markers.all(), strict=False))
