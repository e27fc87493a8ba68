"""Measures the rate of rollouts in GRPO: ``python benchmarks/rollouts.py --json``.

Completions of several problems are sampled four ways, one after the other in each round: by the thinking engine alone,
as in an evaluation with several samples of each problem; by the same engine if it computes the question again for each
completion; by the engine with noise in the thoughts; and as a rollout of ``objective=grpo``, with noise, rewards and
everything else that comes between. The weights are random, and all completions have the same number of tokens.

The noise of ``svp`` reaches into the question, so completions of a problem cannot share its keys and values: the second
way is the engine's rate for the same work.

The last line is JSON:

* ``engine_per_s``: completions of the engine alone, a second, median over the rounds.
* ``explored_over_engine``, ``rollouts_over_engine``: rates of the last two over that of the engine alone, medians over
  the rounds.
* ``rollouts_over_unshared``: that of rollouts over the engine's rate if no questions are shared.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from training_workload import MODELS, make_config, problems_of
from transformers import AutoModelForCausalLM

from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import add_markers, tokenize
from coconut_ds.distributed.ranks import ALONE
from coconut_ds.formats import TEXT
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Prompter, Writing
from coconut_ds.generation.requests import Sampling
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives.grpo import Grpo
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.iterations import prepare_noise
from coconut_ds.training.rewards import Reward
from coconut_ds.training.rollouts import Batch, Sampler


def prepared(options: argparse.Namespace, device: torch.device) -> tuple[LatentLoop, Sampler, Batch]:
    """A model, a sampler and the problems of an iteration."""
    config = compose_config(["objective=grpo", f"grpo.exploration={options.exploration}"])
    problems, tokenizer, _ = problems_of(None, None)
    markers, _ = add_markers(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(options.model, len(tokenizer)), dtype=torch.float32)
    objective = Grpo(config)
    loop = objective.equip(LatentLoop(model)).to(device).eval()
    prepare_noise(loop, is_due=True)
    prompter = Prompter(Backbone(model, tokenizer, markers), METHODS["coconut"], TEXT)
    writing = Writing(options.tokens, options.tokens, Sampling(1.0))
    exploration, reward = objective.exploration, Reward(config)
    sampler = Sampler(
        prompter,
        writing,
        exploration,
        reward,
        options.generations,
        0,
        options.slots,
        replace(ALONE, device=device),
        False,
    )
    arrays = ProblemArrays([arrays_of(tokenize(tokenizer, problems[: options.problems]))], ())
    return loop, sampler, Batch(0, range(options.problems), arrays, problems, options.thoughts)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of a call."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="gpt2_small")
    parser.add_argument("--exploration", choices=["gaussian", "dropout", "svp"], default="gaussian")
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8, help="completions of each problem")
    parser.add_argument("--thoughts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=10, help="tokens of each completion")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    loop, sampler, batch = prepared(options, device)
    requests = [request for index in batch.indices for request in sampler.requests(batch, index)]
    plain = [replace(request, noise=None) for request in requests]
    eos_ids = sampler.prompter.eos_ids
    # Only requests of one owner share the beginnings of their prompts.
    unshared = [replace(request, owner=number) for number, request in enumerate(plain)]
    works = [
        partial(generate, loop, plain, eos_ids, options.slots),
        partial(generate, loop, unshared, eos_ids, options.slots),
        partial(generate, loop, requests, eos_ids, options.slots),
        partial(sampler.sample, loop, batch),
    ]
    for work in works:
        work()
    taken = [[seconds(work, device) for work in works] for _ in range(options.rounds)]
    result = {
        "engine_per_s": statistics.median(len(requests) / alone for alone, *_ in taken),
        "explored_over_engine": statistics.median(alone / explored for alone, _, explored, _ in taken),
        "rollouts_over_engine": statistics.median(alone / rollout for alone, _, _, rollout in taken),
        "rollouts_over_unshared": statistics.median(apart / rollout for _, apart, _, rollout in taken),
    }
    rounded = {name: round(value, 3) for name, value in result.items()}
    if not options.json:
        print("  ".join(f"{name} {value}" for name, value in rounded.items()))
    print(json.dumps({"torch": torch.__version__, "model": options.model, **rounded}))


if __name__ == "__main__":
    main()
