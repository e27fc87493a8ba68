"""Tiny checkpoints in the formats in which other projects publish models that think, and the same models as twins.

The wrappers below have the structure of the authors' modules, so the names in the files come out of ``state_dict``, as
theirs do. A twin knows nothing of files: it is a model, a projection and the ids of the tokens around the thoughts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from recorded_objectives import Recording
from slow_loop import slow_generate, slow_logits
from tiny_models import SHAPES
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout

TEXTS = ["The answer is: 1 + 2 = 3 << >> - 4 5"]
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]}
"""The layers that CODI's scripts train adapters of."""
DECODER_LAYERS = 1


class Evil:
    """Reading it as a pickle would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@dataclass
class Twin:
    """A published model as its authors run it."""

    model: PreTrainedModel
    before: int
    """Id of the token between question and thoughts."""
    after: int
    """Id of the token between thoughts and answer."""
    suppressed: Sequence[int]
    """Ids that are never generated."""
    projection: nn.Module = field(default_factory=nn.Identity)
    end: str = ""
    """Text after the question."""

    def layout(self, question: Sequence[int], thoughts: int, answer: Sequence[int] = ()) -> Layout:
        ids = [*question, self.before, *[self.before] * thoughts, self.after, *answer]
        return Layout(ids, [IGNORE] * len(ids), len(question) + 1, thoughts)

    def tokens(self, question: Sequence[int], thoughts: int, length: int, eos: int) -> list[int]:
        """The greedy answer."""
        request = Request(self.layout(question, thoughts), length, suppress=tuple(self.suppressed))
        return slow_generate(self.model, request, eos, feed=self.projection)

    @torch.no_grad()
    def logits(self, question: Sequence[int], thoughts: int, answer: Sequence[int]) -> Tensor:
        """[T, V] the logits of a sequence."""
        return slow_logits(self.model, self.layout(question, thoughts, answer), feed=self.projection)


def tokenizer():
    return build_word_tokenizer(TEXTS)


def tiny_model(family: str, rows: int, seed: int = 0) -> PreTrainedModel:
    """A random model whose weights are large enough for every part to change the output."""
    torch.manual_seed(seed)
    words = tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = AutoConfig.for_model(family, vocab_size=rows, initializer_range=0.2, **ends, **SHAPES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def save_base(folder: Path, family: str, padded: int = 0) -> int:
    """Writes the folder of a base model: configuration and tokenizer. Returns its number of embedding rows, which is
    ``padded`` more than the tokenizer needs."""
    words = tokenizer()
    rows = len(words) + padded
    tiny_model(family, rows).config.save_pretrained(folder)
    words.save_pretrained(folder)
    return rows


class Coconut(nn.Module):
    """The structure of facebookresearch/coconut's model; SIM-CoT's has a decoder too."""

    def __init__(self, model: PreTrainedModel, decoder: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.base_causallm = model
        if decoder is not None:
            self.expainable_llm = decoder
        self.embedding = model.get_input_embeddings()


def coconut_twin(family: str = "gpt2", seed: int = 0) -> Twin:
    """A model whose three markers follow the words, in the order start, end, thought."""
    first = len(tokenizer())
    model = tiny_model(family, first + 3, seed)
    return Twin(model, first, first + 1, range(first, first + 3), end="\n")


class Codi(nn.Module):
    """The structure of zhenyi4/codi's model; SIM-CoT's has a decoder too."""

    def __init__(self, model: PreTrainedModel, projection: nn.Module | None, decoder: PreTrainedModel | None) -> None:
        super().__init__()
        self.codi = model
        if projection is not None:
            self.prj = projection
        if decoder is not None:
            self.decoder, self.pj_in = decoder, nn.Linear(8, 8)


def make_projection(size: int = 32, width: int = 24, norm: bool = True, norm_name: str = "ln") -> nn.Sequential:
    """CODI's projection as its authors build it."""
    made = nn.Sequential(nn.Dropout(0.0), nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))
    if norm:
        made.add_module(norm_name, nn.LayerNorm(size))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made.eval()


def codi_twin(family: str, rows: int, projection: nn.Module | None) -> Twin:
    """A model with three rows after those of the base model: padding, begin and end of thought.

    Theirs only suppresses the last one. Ours never generates any of the three, nor a row that no token has.
    """
    model = tiny_model(family, rows + 3, seed=1)
    unused = range(len(tokenizer()), rows + 3)
    return Twin(model, rows + 1, rows + 2, unused, nn.Identity() if projection is None else projection)


def with_adapters(twin: Twin, family: str, rank: int = 4, alpha: float = 8.0) -> PreTrainedModel:
    """Adds adapters that are not zero to the twin's model; returns what ``peft`` makes of it, which is saved.

    The twin keeps the wrapped model, whose layers add the adapters themselves.
    """
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
    wrapped = get_peft_model(twin.model, settings)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return wrapped.eval()


def recorded_base(folder: Path, recording: Recording, rows: int) -> None:
    """The base model of a recording, whose tokenizer has a word for each id."""
    words = build_word_tokenizer([" ".join(f"w{i}" for i in range(rows - 4))])
    vocabulary = words.get_vocab()
    assert len(vocabulary) == rows, len(vocabulary)
    state = json.loads(words.backend_tokenizer.to_str())
    # The recorded end of sequence has the last id.
    last = next(name for name, index in vocabulary.items() if index == recording.ids["eos"])
    end = "<|endoftext|>"
    swapped = {last: vocabulary[end], end: vocabulary[last]}
    state["model"]["vocab"] = {**vocabulary, **swapped}
    state["added_tokens"] = []
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<|unknown|>", eos_token=end, bos_token=end
    ).save_pretrained(folder)
    config = json.loads((recording.folder / "config.json").read_text())
    config["vocab_size"] = rows
    (folder / "config.json").write_text(json.dumps(config))
