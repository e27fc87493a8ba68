"""Tiny checkpoints with random weights that are the same with every version of torch and transformers.

Both the project's own environment, which computes the reference tokens, and that of vLLM build them from this file.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data"
MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
PAUSE = "<|pause|>"
WORDS = ["every", "lempus", "is", "a", "bompus", "Tom", "sees", "two", "red", "apples", "and", "gives", "away", "café"]
SIZE, WIDTH = 128, 96
NEW_TOKENS = 12


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, and what it is asked."""

    architecture: str
    method: str = "coconut"
    number: int = 4
    feed: bool = False
    likely: tuple[str, ...] = ()
    """Markers whose row of the head is larger, so that the model writes them often."""
    questions: int = 40
    options: tuple[dict[str, Any], ...] = field(default=tuple({"n_thoughts": n} for n in range(9)))
    """Arguments of ``Reasoner.generate``, used for the questions in turns."""


CHECKPOINTS = {
    "gpt2": Checkpoint("gpt2"),
    "llama": Checkpoint("llama"),
    "qwen2": Checkpoint("qwen2"),
    "qwen3": Checkpoint("qwen3"),
    "mistral": Checkpoint("mistral"),
    "codi": Checkpoint("gpt2", "coconut_no_curriculum", feed=True),
    "deciding": Checkpoint(
        "llama",
        likely=("<|end-latent|>",),
        options=({"min_thoughts": 1, "max_thoughts": 8}, {"max_thoughts": 6}, {"n_thoughts": 8, "force_text_after": 3}),
    ),
    "reversed": Checkpoint("llama", "coconut_reversed", likely=("<|start-latent|>",)),
    "pause": Checkpoint("gpt2", "pause", questions=9),
    "pause_as_thought": Checkpoint("gpt2", "pause_as_thought", questions=9),
    "cot": Checkpoint("gpt2", "cot", number=0, questions=4, options=({},)),
}


def questions(count: int) -> list[str]:
    """Questions of 3 to 60 words, some with the same beginning."""
    random = np.random.default_rng(0)
    shared = " ".join(random.choice(WORDS, 40))
    made = []
    for index in range(count):
        own = " ".join(random.choice(WORDS, int(random.integers(3, 30))))
        made.append(f"{shared} {own}." if index % 3 == 0 else f"{own}?" if index % 3 == 1 else f"{own}.")
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in which a full stop and a newline are one token, as in Llama 3's."""
    made = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|begin|>"
    )
    made.add_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*MARKERS, PAUSE)], special_tokens=True
    )
    return made


def configuration(architecture: str, vocabulary: int) -> Any:
    """transformers' configuration of a model with two layers."""
    if architecture == "gpt2":
        sizes = {"n_embd": SIZE, "n_layer": 2, "n_head": 4, "n_positions": 256}
        return AutoConfig.for_model("gpt2", vocab_size=vocabulary, eos_token_id=0, bos_token_id=1, **sizes)
    return AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary,
        hidden_size=SIZE,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=architecture == "qwen2",
        eos_token_id=0,
        bos_token_id=1,
    )


def values(name: str, shape: tuple[int, ...], around: float = 0.0) -> torch.Tensor:
    """Random numbers that depend on the name of the parameter alone."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy((around + random.normal(0, 0.1, shape)).astype(np.float32))


def build(name: str, folder: Path) -> Path:
    """Writes a checkpoint into ``folder/name``."""
    made, place = CHECKPOINTS[name], folder / name
    texts = tokenizer()
    ids = texts.get_vocab()
    model = AutoModelForCausalLM.from_config(configuration(made.architecture, len(texts)))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_norm = key.endswith("weight") and ("norm" in key or "ln_" in key)
            parameter.copy_(values(key, tuple(parameter.shape), 1.0 if is_norm else 0.0))
        for marker in made.likely:
            model.get_output_embeddings().weight[ids[marker]] *= 2
    model.save_pretrained(place)
    texts.save_pretrained(place)
    if made.feed:
        shapes = {"inner.weight": (WIDTH, SIZE), "inner.bias": (WIDTH,), "outer.weight": (SIZE, WIDTH)}
        shapes |= {"outer.bias": (SIZE,), "norm.bias": (SIZE,)}
        state = {key: values(key, shape) for key, shape in shapes.items()}
        (place / "latent").mkdir()
        save_file(state | {"norm.weight": values("norm", (SIZE,), 0.3)}, place / "latent" / "feed.safetensors")
    (place / "coconut.json").write_text(json.dumps(card(made, ids)))
    return place


def card(made: Checkpoint, ids: dict[str, int]) -> dict[str, Any]:
    """The content of ``coconut.json``."""
    pauses = made.method.startswith("pause")
    content: dict[str, Any] = {
        "method": made.method,
        "stage": 1,
        "num_thoughts": 0 if pauses else made.number,
        "c_thought": max(made.number, 1),
        "max_latent_stage": 1,
        "marker_ids": {name: ids[name] for name in (*MARKERS, PAUSE)},
        "num_pauses": made.number if pauses else 0,
        "tokens_per_epoch": 8,
        "format": "text",
        "iterations": None,
        "provenance": {},
    }
    return content | ({"feed": {"kind": "projection", "width": WIDTH}} if made.feed else {})


def asked(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The questions to a checkpoint, each with its arguments."""
    made = CHECKPOINTS[name]
    return [(text, made.options[i % len(made.options)]) for i, text in enumerate(questions(made.questions))]


def digest(folder: Path) -> str:
    """A checksum of the weights and the tokenizer of a checkpoint."""
    parts = [path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))]
    return f"{zlib.crc32(b''.join(parts)):08x}"
