"""CODI's state dicts: LoRA is merged into the model's weights, and the projection becomes a feed.

A published file holds the weights of the authors' wrapper: the model that ``peft`` has wrapped, the projection, and for
SIM-CoT an auxiliary decoder, which takes part in training only (arXiv 2502.21074, 2509.20317). An embedding of V rows
has three more: padding, begin of thought, end of thought.

Shapes:
    V  embedding rows of the base model
    D  hidden size
    P  size of the projection's hidden layer
    r  rank of the adapters
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from coconut_ds.data.tokens import MARKERS
from coconut_ds.errors import CheckpointError
from coconut_ds.importing.published import CODI_DECODER, CODI_PREFIX
from coconut_ds.model.feed import FEEDS, Feed
from coconut_ds.model.reference_state import embedding_key

PEFT_PREFIX = "base_model.model."
ADAPTER = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.\w+\.weight")
PROJECTION_PREFIX = "prj."
TRAINING_ONLY = (CODI_DECODER, "pj_in.", "pj_out.", "dynamic_cls.")
"""What precedes the names of tensors that the authors' own generation does not use."""
PARTS = {"1": "inner", "3": "outer", "ln": "norm", "4": "norm"}
"""The feed's layers by their names in a projection; LatentTTS numbers the norm."""


START, END, THOUGHT = MARKERS
CODI_ORDER = (THOUGHT, START, END)
"""The markers in the order of CODI's three extra rows: padding, which no sequence contains, then begin and end of
thought."""
ADVICE = "set --base to the model that it was trained on"


@dataclass(frozen=True)
class CodiState:
    """The parts of a published file."""

    model: dict[str, Tensor]
    """The model's weights without adapters, by the names of transformers."""
    adapters: dict[str, dict[str, Tensor]]
    """For each layer with an adapter: ``A`` [r, in] and ``B`` [out, r]."""
    projection: dict[str, Tensor]
    """Empty if thoughts are fed back as they are."""


def split(where: Path, tensors: Mapping[str, Tensor]) -> CodiState:
    """Sorts the tensors of a file by what they belong to. What only training uses is never read.

    Raises:
        CheckpointError: there are tensors that have no place in a model of this project.
    """
    parts = CodiState({}, {}, {})
    unknown = []
    for name in tensors:
        inner = name.removeprefix(CODI_PREFIX)
        plain = inner.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
        if name.startswith(TRAINING_ONLY):
            continue
        if name.startswith(PROJECTION_PREFIX):
            parts.projection[name.removeprefix(PROJECTION_PREFIX)] = tensors[name].float()
        elif inner == name or "modules_to_save" in name:
            unknown.append(name)
        elif match := ADAPTER.fullmatch(plain):
            parts.adapters.setdefault(match["layer"], {})[match["side"]] = tensors[name].float()
        elif "lora_" in plain:
            unknown.append(name)
        else:
            parts.model[plain] = tensors[name]
    if unknown:
        raise CheckpointError(
            f"{where}: holds {len(unknown)} tensors that have no place in a model of this project, such as "
            f"{unknown[0]}; without them the model would think otherwise, so it cannot be imported"
        )
    return parts


def arrange(place: Path, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> int:
    """Adds the markers to the tokenizer, and moves CODI's three extra rows of the embeddings to their ids.

    The rows follow those of the base model, which may be more than its tokenizer has tokens; the markers follow the
    tokens. Returns the number of rows.

    Args:
        place: the file or folder, for messages.
        state: the model's weights; changed in place.
        tokenizer: that of the base model; changed in place.
        vocabulary: V.

    Raises:
        CheckpointError: the embedding has not V + 3 rows, or the tokenizer has more than V tokens.
    """
    last = max(tokenizer.get_vocab().values()) + 1
    key = embedding_key(place, state)
    rows = int(state[key].shape[0])
    if rows != vocabulary + len(CODI_ORDER) or last > vocabulary:
        raise CheckpointError(
            f"{place}: has embedding rows for {rows} tokens; expected {vocabulary} of the base model, at least as many "
            f"as its tokenizer has ({last}), and {len(CODI_ORDER)} more; {ADVICE}"
        )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in CODI_ORDER], special_tokens=True)
    for name in (key, "lm_head.weight"):
        if name in state and last < vocabulary:
            own, extra = state[name][:vocabulary], state[name][vocabulary:]
            moved = own.new_zeros(max(vocabulary, last + len(CODI_ORDER)), own.shape[1])
            moved[:vocabulary] = own
            moved[last : last + len(CODI_ORDER)] = extra
            state[name] = moved
    return int(state[key].shape[0])


@torch.no_grad()
def merge(where: Path, model: PreTrainedModel, adapters: Mapping[str, Mapping[str, Tensor]], alpha: float) -> None:
    """Adds (alpha / r) · B A to the weights of ``model``, in fp32; transposed where a layer stores them so (GPT-2).

    Raises:
        CheckpointError: an adapter is not complete, or does not fit its layer.
    """
    modules = dict(model.named_modules())
    for name, sides in adapters.items():
        layer = modules.get(name)
        if layer is None or sides.keys() != {"A", "B"}:
            raise CheckpointError(f"{where}: the adapter of {name} is not complete, or the model has no such layer")
        down, up = sides["A"], sides["B"]
        change = alpha / down.shape[0] * (up @ down)
        if isinstance(layer, Conv1D):
            change = change.T
        weight = layer.get_parameter("weight")
        if weight is model.get_input_embeddings().weight:
            raise CheckpointError(f"{where}: has an adapter of {name}, whose weights are those of the embedding too")
        if weight.shape != change.shape:
            raise CheckpointError(
                f"{where}: the adapter of {name} changes {list(change.shape)} weights, the layer has "
                f"{list(weight.shape)}; {ADVICE}"
            )
        weight += change


def feed_of(where: Path, projection: Mapping[str, Tensor], size: int) -> Feed | None:
    """The feed with the weights of a projection; None if there is none.

    Args:
        where: the file, for messages.
        projection: linear layers ``1`` [P, D] and ``3`` [D, P], and a norm ``ln`` or ``4`` [D].
        size: D.

    Raises:
        CheckpointError: it is another projection than CODI's.
    """
    if not projection:
        return None
    state = {}
    for name, value in projection.items():
        part, _, rest = name.partition(".")
        state[f"{PARTS.get(part, part)}.{rest}"] = value.float()
    if not any(name.startswith("norm.") for name in state):
        raise CheckpointError(
            f"{where}: its projection has no layer norm (prj_no_ln), and no feed of this project is like that, so it "
            "cannot be imported"
        )
    width = state["inner.weight"].shape[0] if "inner.weight" in state else 0
    feed = FEEDS["projection"](size, max(width, 1))
    wanted = feed.state_dict()
    if state.keys() != wanted.keys() or any(state[name].shape != wanted[name].shape for name in wanted):
        raise CheckpointError(
            f"{where}: its projection has the tensors {', '.join(sorted(projection))}; expected two linear layers and "
            f"a layer norm for states of {size} numbers"
        )
    feed.load_state_dict(state)
    return feed.eval()
