"""Turns a published checkpoint into a model folder of this project."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.tokenizer_files import read_tokenizer
from coconut_ds.data.tokens import MARKERS, check_tokenizer
from coconut_ds.errors import CheckpointError, ModelError
from coconut_ds.formats import CODI, TEXT
from coconut_ds.hub import load_by_name, local_folder
from coconut_ds.importing.codi import ADVICE, CODI_ORDER, arrange, feed_of, merge, split
from coconut_ds.importing.published import COCONUT_DECODER, COCONUT_PREFIX, PROJECTIONS, Published, recognised
from coconut_ds.importing.tensors import Tensors, weight_files_of
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.model.backbone import Backbone, add_marker_rows, architecture, model_from_scratch
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import check_target
from coconut_ds.model.compatibility import check_model_type
from coconut_ds.model.folder_files import quantization, quantized, read_object
from coconut_ds.model.readme import Origin
from coconut_ds.model.reference_state import backbone_of, embedding_key, fill
from coconut_ds.model.support import state_size
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings import ModelConfig

FILES = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "pytorch_model*.bin", "checkpoint_*"),
    *PROJECTIONS,
)
"""What is downloaded of a checkpoint on the hub: nothing that could run."""
PROJECTOR = "projector."
"""What precedes the names of CODI's projection among a model's weights, in LatentTTS's class."""


@dataclass(frozen=True)
class ImportOptions:
    """How to read a published checkpoint; what is None follows from its files."""

    format: str = "auto"
    """A name in ``published.FormatName``, or ``auto``."""
    base: str | None = None
    """The model that a state dict was trained from, for its architecture and tokenizer: a folder, or a name."""
    tokenizer: str | None = None
    """The tokenizer, if it is not that of ``base``."""
    method: str | None = None
    """The training method of a state dict without thoughts."""
    n_thoughts: int | None = None
    """Number of thoughts at inference."""
    c_thought: int | None = None
    """Number of thoughts for each step."""
    lora_alpha: float = 32.0
    """The scale of adapters times their rank; 32 in the scripts of CODI and SIM-CoT."""


def import_checkpoint(source: str, out: Path, options: ImportOptions) -> tuple[Published, Reasoner]:
    """Reads a published checkpoint and writes the model folder ``out``.

    Args:
        source: a file, a folder, or a name on the hub.
        out: the folder to write; a model folder of that name is replaced.
        options: see ``ImportOptions``.

    Returns:
        What the checkpoint was recognised as, and the model that was written.

    Raises:
        CheckpointError: it cannot be read, or holds something that this project cannot express.
        ModelError: base model or tokenizer are not available.
    """
    check_target(out)
    place = local_folder(source, FILES, "SOURCE", "download it elsewhere, copy it here, and name its folder")
    tensors = Tensors(weight_files_of(place))
    found = recognised(place, tensors, options.format)
    projection = _projection(place, tensors) if found.kind == "folder" else {}
    is_codi = found.kind == "codi_state" or bool(projection) or "CODIGPT2" in found.classes
    method, spec = _thinking(place, found, options, is_codi)
    if found.kind == "coconut_state":
        backbone = _from_coconut_state(place, tensors, options, METHODS[method].pauses)
    elif found.kind == "codi_state":
        backbone = _from_codi_state(place, tensors, options)
    else:
        backbone = _from_folder(place, tensors, projection, is_codi)
    name = Path(source).name if Path(source).exists() else source
    card = ModelCard.of(
        METHODS[method],
        spec.max_latent_stage + 1 if METHODS[method].has_curriculum else 0,
        spec,
        CODI.name if is_codi else TEXT.name,
        marker_table(backbone.markers),
        {"imported_from": name, "imported_format": found.format, "imported_files": _hashes(tensors.files)},
        feed=None if backbone.feed is None else backbone.feed.spec,
    )
    reasoner = Reasoner(backbone, card, out.name)
    base = None if options.base is None or Path(options.base).exists() else options.base
    reasoner.save(out, Origin(_objective(found, is_codi), base_model=base, source=name))
    return found, reasoner


def _objective(found: Published, is_codi: bool) -> str | None:
    """The objective that a published model was trained with; None if its files do not say it."""
    if found.format == "sim_cot":
        return "sim_cot_codi" if is_codi else "sim_cot"
    return "codi" if is_codi else None


def _thinking(place: Path, found: Published, options: ImportOptions, is_codi: bool) -> tuple[str, CurriculumSpec]:
    """The training method, and a curriculum that ends with the model's number of thoughts."""
    if options.method is not None and (is_codi or found.thinks):
        raise CheckpointError(f"{place}: its files say how it thinks; leave --method out")
    method = "coconut_no_curriculum" if is_codi else "coconut" if found.thinks else options.method
    if method is None:
        raise CheckpointError(
            f"{place}: a state dict without {COCONUT_PREFIX} does not say how it was trained; set --method cot, or "
            f"another of {', '.join(sorted(METHODS))}"
        )
    if not METHODS[method].has_latents:
        return method, CurriculumSpec(0, 0)
    number = found.n_thoughts if options.n_thoughts is None else options.n_thoughts
    if number is None:
        raise CheckpointError(
            f"{place}: a state dict does not say how many thoughts its model needs; set --n-thoughts to c_thought · "
            "max_latent_stage of its training (6 for GSM8K, ProntoQA and ProsQA in the paper)"
        )
    each = (1 if is_codi else 2) if options.c_thought is None else options.c_thought
    if number % each:
        raise CheckpointError(
            f"{place}: {number} thoughts are not a multiple of {each} for each step; set --c-thought to the number of "
            "thoughts that replace one step"
        )
    return method, CurriculumSpec(each, number // each)


def _from_coconut_state(place: Path, tensors: Tensors, options: ImportOptions, pause: bool) -> Backbone:
    """A state dict of Coconut's own program, or of SIM-CoT on it, whose auxiliary decoder is left out."""
    state = {name: tensors[name] for name in tensors if not name.startswith(COCONUT_DECODER)}
    settings, tokenizer = _base(place, tensors, options)
    return backbone_of(place, state, settings, tokenizer, pause)


def _from_codi_state(place: Path, tensors: Tensors, options: ImportOptions) -> Backbone:
    settings, tokenizer = _base(place, tensors, options)
    parts = split(place, tensors)
    vocabulary = int(architecture(settings).get_text_config().vocab_size)
    rows = arrange(place, parts.model, tokenizer, vocabulary)
    model = model_from_scratch(settings, tokenizer, rows)
    fill(place, model, parts.model, ADVICE)
    merge(place, model, parts.adapters, options.lora_alpha)
    backbone = add_marker_rows(model, tokenizer, rows)
    backbone.feed = feed_of(place, parts.projection, state_size(model))
    return backbone


def _from_folder(place: Path, tensors: Tensors, projection: Mapping[str, Tensor], is_codi: bool) -> Backbone:
    """A Hugging Face folder of LatentTTS or SVP."""
    config = read_object(place / "config.json")
    check_model_type(place, config)
    if kind := quantization(config):
        raise CheckpointError(f"{place}: {quantized(kind)}")
    settings, tokenizer = ModelConfig(model_id=str(place)), _tokenizer(str(place), "SOURCE")
    state = {name: tensors[name] for name in tensors if not name.startswith(PROJECTOR)}
    rows = int(state[embedding_key(place, state)].shape[0])
    if not set(MARKERS) <= tokenizer.get_vocab().keys():
        if not is_codi:
            raise CheckpointError(
                f"{place}: its tokenizer lacks {MARKERS[0]}, so it is not a model that thinks; evaluate it with "
                "method=cot, without importing it"
            )
        rows = arrange(place, state, tokenizer, rows - len(CODI_ORDER))
    model = model_from_scratch(settings, tokenizer, rows)
    fill(place, model, state, "its config.json describes another model; download the folder again")
    backbone = add_marker_rows(model, tokenizer, rows)
    backbone.feed = feed_of(place, projection, state_size(model))
    return backbone


def _projection(place: Path, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of CODI's projection, in a file of its own or among the weights; empty if there is none."""
    inside = {name.removeprefix(PROJECTOR): tensors[name] for name in tensors if name.startswith(PROJECTOR)}
    files = [place / name for name in PROJECTIONS if (place / name).is_file()]
    if inside or not files:
        if not inside and read_object(place / "config.json").get("projector"):
            raise CheckpointError(f"{place}: config.json names a projector, but its weights are missing")
        return inside
    return dict(Tensors(files[:1]))


def _base(place: Path, tensors: Tensors, options: ImportOptions) -> tuple[ModelConfig, PreTrainedTokenizerBase]:
    """The architecture and the tokenizer that a state dict belongs to."""
    base = options.base or ("gpt2" if _is_smallest_gpt2(tensors) else None)
    if base is None:
        raise CheckpointError(
            f"{place}: a state dict does not say its architecture; {ADVICE}: a folder with config.json and a "
            "tokenizer, or a name on the hub"
        )
    settings = ModelConfig(model_id=base)
    try:
        architecture(settings)
    except ModelError as error:
        raise ModelError(f"--base {base}: {error}") from error
    if options.tokenizer is not None:
        return settings, _tokenizer(options.tokenizer, "--tokenizer")
    return settings, _tokenizer(base, "--base")


def _tokenizer(name: str, setting: str) -> PreTrainedTokenizerBase:
    advice = "name a folder with the files of the tokenizer that the model was trained with (--tokenizer)"
    tokenizer = load_by_name(read_tokenizer, name, setting, advice)
    check_tokenizer(tokenizer, f"{setting}={name}:", advice)
    return tokenizer


def _is_smallest_gpt2(tensors: Tensors) -> bool:
    """Whether the weights are those of the GPT-2 with 12 layers of width 768, which the public checkpoints use."""
    last = [name for name in tensors if name.endswith("transformer.h.11.ln_1.weight")]
    more = any("transformer.h.12." in name for name in tensors)
    return bool(last) and not more and tuple(tensors[last[0]].shape) == (768,)


def _hashes(files: list[Path]) -> dict[str, str]:
    """SHA-256 of the files of weights, by name."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
