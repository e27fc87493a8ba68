"""Compares generation speed: the thinking engine, the public implementation's loop, and ``transformers.generate``.

    python benchmarks/evaluation.py --json          # 2 CPU cores: about five minutes
    python benchmarks/evaluation.py --device cuda

The model is a six-layer, 512-wide GPT-2 with random weights and GPT-2's vocabulary. The questions come from ProsQA's
generator and have about 360 tokens each; there are 6 thoughts and 16 new tokens, and no sequence ends earlier. All
variants run in one process, one after another in each round, and medians over the rounds are reported, so that whatever
slows the machine down slows all variants.

* ``naive``: one question at a time, in fp32, as the public implementation does it: the question and each thought are
  encoded with a cache; then the whole sequence is encoded again for every token, with logits at every position.
* ``single``: the engine with one slot, fp32.
* ``fp32`` and ``bf16``: the engine with 32 slots, on 64 questions.
* ``transformers``: ``generate`` on 32 prompts without thoughts, padded on the left.
* ``plain``: the engine on the same prompts as ``transformers``.

The last line is JSON:

* ``ratio_fp32``, ``ratio_bf16``: problems per second over the naive loop's.
* ``over_transformers``: the engine's time per problem over that of transformers.
* ``cache_over_shapes``: memory of the cache over what its rows need.
* ``advance_over_floor`` and what follows it: the one-position step, see ``benchmarks/step.py``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import step
import torch
from generation_workload import (
    END,
    EOS,
    NEW_TOKENS,
    NUM_THOUGHTS,
    START,
    THOUGHT,
    model_of,
    request_of,
    synchronise,
    tokens_of_questions,
)
from transformers import PreTrainedModel

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.precision import multiplies_bf16

SLOTS, STEPS = 32, 16

Variants = dict[str, tuple[int, Callable[[int], object]]]
"""For each variant, the number of problems in a run and the function that runs it, given the number of the round."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(torch.device(arguments.device), arguments.rounds)
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:>24}  {value}")
    print(json.dumps(result))


def measure(device: torch.device, rounds: int) -> dict[str, object]:
    """Runs all variants. Returns the numbers described at the top of this file."""
    questions = tokens_of_questions(2 * SLOTS)
    thinking = [request_of(question, NUM_THOUGHTS) for question in questions]
    loops = {dtype: LatentLoop(model_of(dtype, device)) for dtype in (torch.float32, torch.bfloat16)}
    seconds = seconds_per_problem(variants_of(questions, thinking, loops, device), rounds, device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(name: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 2)

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "bf16": "native" if multiplies_bf16(device) else "weights rounded, computed in fp32: no instructions for it",
        "tokens_a_question": round(statistics.mean(map(len, questions)), 1),
        "problems_per_s": {name: round(1 / value, 3) for name, value in medians.items()},
        "ratio_single": ratio("naive", "single"),
        "ratio_fp32": ratio("naive", "fp32"),
        "ratio_bf16": ratio("naive", "bf16"),
        "over_transformers": ratio("plain", "transformers"),
        "over_transformers_bf16": ratio("plain_bf16", "transformers_bf16"),
        **cache_of(loops[torch.float32], thinking),
        **step.measure(loops[torch.bfloat16], SLOTS, STEPS),
    }


def variants_of(
    questions: list[list[int]],
    thinking: list[Request],
    loops: dict[torch.dtype, LatentLoop],
    device: torch.device,
) -> Variants:
    """All variants, in the order in which they run. ``thinking``: the requests for the questions, with thoughts."""
    plain = [request_of(question, 0) for question in questions[:SLOTS]]
    models = {dtype: model_of(dtype, device) for dtype in loops}
    fp32, bf16 = torch.float32, torch.bfloat16
    return {
        "naive": (1, lambda n: naive(models[fp32], questions[n % len(questions)])),
        "single": (4, lambda n: generate(loops[fp32], thinking[4 * n % 60 :][:4], [EOS], 1)),
        "fp32": (len(thinking), lambda n: generate(loops[fp32], thinking, [EOS], SLOTS)),
        "bf16": (len(thinking), lambda n: generate(loops[bf16], thinking, [EOS], SLOTS)),
        "transformers": (SLOTS, lambda n: transformers_generate(models[fp32], questions[:SLOTS])),
        "plain": (SLOTS, lambda n: generate(loops[fp32], plain, [EOS], SLOTS)),
        "transformers_bf16": (SLOTS, lambda n: transformers_generate(models[bf16], questions[:SLOTS])),
        "plain_bf16": (SLOTS, lambda n: generate(loops[bf16], plain, [EOS], SLOTS)),
    }


def seconds_per_problem(variants: Variants, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """For each variant, the seconds per problem in each round. An additional first round warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, (count, run) in variants.items():
            synchronise(device)
            began = time.perf_counter()
            run(number)
            synchronise(device)
            if number:
                seconds[name].append((time.perf_counter() - began) / count)
    return seconds


@torch.no_grad()
def naive(model: PreTrainedModel, question: list[int]) -> list[int]:
    """Generates as the public implementation does: with a cache for the thoughts, and without one for the text."""
    embed = model.get_input_embeddings()
    start = torch.tensor([[*question, START]], device=model.device)
    embeds = embed(start)
    output = model(inputs_embeds=embeds, output_hidden_states=True, use_cache=True)
    for _ in range(NUM_THOUGHTS):
        thought = output.hidden_states[-1][:, -1:]
        embeds = torch.cat([embeds, thought], dim=1)
        cache = output.past_key_values
        output = model(inputs_embeds=thought, past_key_values=cache, output_hidden_states=True, use_cache=True)
    embeds = torch.cat([embeds, embed(torch.tensor([[END]], device=model.device))], dim=1)
    tokens: list[int] = []
    while len(tokens) < NEW_TOKENS:
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        logits[[EOS, START, THOUGHT, END]] = float("-inf")
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, embed(torch.tensor([[tokens[-1]]], device=model.device))], dim=1)
    return tokens


@torch.no_grad()
def transformers_generate(model: PreTrainedModel, questions: list[list[int]]) -> object:
    """Greedy ``generate`` on one batch, padded on the left; each row gets exactly ``NEW_TOKENS`` tokens."""
    width = max(map(len, questions))
    ids = torch.tensor([[EOS] * (width - len(q)) + q for q in questions], device=model.device)
    mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in questions], device=model.device)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    tokens = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **length)
    assert tokens.shape[1] == width + NEW_TOKENS
    return tokens


def cache_of(loop: LatentLoop, requests: list[Request]) -> dict[str, float]:
    """The memory of the engine's cache, also over what ``SLOTS`` rows of the longest request need."""
    longest = max(request.num_positions for request in requests)
    engine = ThinkingEngine(loop, [EOS], SLOTS, longest)
    engine.submit(requests[0])
    engine.run()
    config = loop.model.config
    needed = 2 * config.num_hidden_layers * SLOTS * longest * config.hidden_size * 4
    return {"cache_mb": round(engine.cache.num_bytes / 1e6, 1), "cache_over_shapes": engine.cache.num_bytes / needed}


if __name__ == "__main__":
    main()
