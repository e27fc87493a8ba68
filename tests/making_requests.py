"""Prompts, random requests, and a listener that keeps the completions, for the tests of generation."""

import random
from dataclasses import replace

import torch
from slow_loop import slow_generate
from tiny_models import VOCABULARY

from coconut_ds.generation.requests import AtOnce, Completion, Request, Thinking
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel

FAMILIES = ["gpt2", "llama", "qwen3"]

LATENT = VOCABULARY - 1
AT_ONCE = (
    *(Parallel("jacobi", passes) for passes in (1, 2, 3)),
    *(Parallel("looped", None, 2), Parallel("looped", 2)),
)
"""Ways to compute all thoughts at once. For ``Parallel("looped", None, 2)``, two thoughts add one round."""


def prompt_of(question: list[int], count: int, after: tuple[int, ...] = (2,)) -> Layout:
    ids = [*question, *[LATENT] * count, *after]
    return Layout(ids, [IGNORE] * len(ids), len(question) if count else len(ids), count)


class Ends(Listener):
    """Keeps the completions by ticket."""

    def __init__(self):
        self.completions = {}

    def on_done(self, ticket, completion):
        assert ticket not in self.completions
        self.completions[ticket] = completion


def draw_request(rng: random.Random, questions: list[list[int]], model: torch.nn.Module, eos: int) -> Request:
    """0 to 8 thoughts, in the prompt or started by the model; sometimes a question that begins like another."""
    question = [rng.randrange(1, LATENT) for _ in range(rng.choice([1, 3, 8, 24, 40]))]
    if questions and rng.random() < 0.5:
        # Longer than the other by more or fewer tokens than one-position passes take, or equal to it.
        question = rng.choice(questions) + question[: rng.choice([0, 2, 12])]
        question = question[: rng.choice([len(question), max(1, len(question) - 3)])]
    questions.append(question)
    request = Request(prompt_of(question, rng.randint(0, 8)), rng.randint(1, 7), suppress=(LATENT,))
    request = replace(request, min_new_tokens=rng.choice([0, 0, 3]))
    if rng.random() < 0.25:
        alone = replace(request, prompt=prompt_of(question, 0, ()))
        start = rng.choice(slow_generate(model, alone, eos))
        request = replace(alone, thinking=Thinking(start, 3, rng.randint(0, 8)))
    return request


def draw_ways(rng: random.Random, requests: list[Request]) -> list[Request]:
    """The same requests; in about half of those with thoughts in their prompt, all thoughts are computed at
    once."""
    return [
        replace(one, at_once=AtOnce(rng.choice(AT_ONCE), LATENT))
        if one.prompt.num_thoughts and rng.random() < 0.5
        else one
        for one in requests
    ]


def run_with_arrivals(engine: ThinkingEngine, requests: list[Request], rng: random.Random) -> list[Completion]:
    """Submits requests in a random order at random moments; returns the completion of each."""
    ends, tickets = Ends(), {}
    waiting = rng.sample(range(len(requests)), len(requests))
    while waiting or engine.due():
        while waiting and (rng.random() < 0.3 or not engine.due()):
            index = waiting.pop()
            tickets[index] = engine.submit(requests[index], ends)
        engine.step(engine.due())
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    return [ends.completions[tickets[index]] for index in range(len(requests))]
