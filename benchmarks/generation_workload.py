"""The model and the requests of the benchmarks of generation.

The model is a six-layer, 512-wide GPT-2 with random weights and GPT-2's vocabulary. The questions come from ProsQA's
generator and have about 360 tokens each; there are 6 thoughts, and no sequence ends before its last new token.
"""

import random
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coconut_ds.data.prosqa import generate_problem
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.precision import cast

VOCABULARY, EOS, START, THOUGHT, END = 50260, 50256, 50257, 50258, 50259
NUM_THOUGHTS, NEW_TOKENS = 6, 16


def tokens_of_questions(count: int) -> list[list[int]]:
    """Token ids of ``count`` generated questions, cut into pieces as GPT-2's tokenizer does: lempus is lem, p, us."""
    rng, ids = random.Random(0), dict[str, int]()
    found = []
    for _ in range(count):
        pieces = re.findall(r"[A-Za-z]{1,4}(?=[a-z]*pus)|p(?=us\b)|us\b|\w+|[^\w\s]|\n", generate_problem(rng).question)
        found.append([ids.setdefault(piece, len(ids)) for piece in [*pieces, "\n"]])
    return found


def request_of(question: list[int], thoughts: int, length: int = NEW_TOKENS) -> Request:
    """A request with the question, ``thoughts`` between markers, and exactly ``length`` new tokens."""
    ids = [*question, START, *[THOUGHT] * thoughts, END] if thoughts else question
    layout = Layout(ids, [IGNORE] * len(ids), len(question) + 1 if thoughts else len(ids), thoughts)
    return Request(layout, length, min_new_tokens=length, suppress=(START, THOUGHT, END))


def model_of(dtype: torch.dtype, device: torch.device, positions: int = 1024) -> PreTrainedModel:
    """The benchmark's model with a context of ``positions``, with the same random weights in each call."""
    torch.manual_seed(0)
    shape = {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": positions}
    config = GPT2Config(**shape, vocab_size=VOCABULARY, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS)
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    cast(model, dtype, device)
    return model


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
