"""Batched, cached, continuous generation equals the slow one, token for token; and what else a request may ask for."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY
from slow_loop import slow_generate

from coconut_ds.generation import thinking_engine
from coconut_ds.generation.requests import Request, Thinking
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.layout import IGNORE, Layout
from coconut_ds.model.latent_loop import LatentLoop

FAMILIES = ["gpt2", "llama", "qwen3"]
LATENT = VOCABULARY - 1


def prompt_of(question: list[int], count: int, after: tuple[int, ...] = (2,)) -> Layout:
    ids = [*question, *[LATENT] * count, *after]
    return Layout(ids, [IGNORE] * len(ids), len(question) if count else len(ids), count)


def draw_request(rng: random.Random, questions: list[list[int]], model: torch.nn.Module, eos: int) -> Request:
    """0 to 8 thoughts, in the prompt or by itself; sometimes a question that begins like another."""
    question = [rng.randrange(1, LATENT) for _ in range(rng.choice([1, 3, 8, 24, 40]))]
    if questions and rng.random() < 0.5:
        # Goes on for more or fewer tokens than are taken along in one-position passes, or is the same.
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


class Ends(Listener):
    """Completions by ticket."""

    def __init__(self):
        self.completions = {}

    def on_done(self, ticket, completion):
        assert ticket not in self.completions
        self.completions[ticket] = completion


def run_with_arrivals(engine: ThinkingEngine, requests: list[Request], rng: random.Random) -> list[list[int]]:
    """Requests come in a random order, at random moments."""
    ends, tickets = Ends(), {}
    waiting = rng.sample(range(len(requests)), len(requests))
    while waiting or engine.due():
        while waiting and (rng.random() < 0.3 or not engine.due()):
            index = waiting.pop()
            tickets[index] = engine.submit(requests[index], ends)
        engine.step(engine.due())
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    return [ends.completions[tickets[index]].tokens for index in range(len(requests))]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_any_requests_in_any_order_are_continued_as_each_is_alone(tiny_model, family, monkeypatch):
    """80 random cases a family: prompts, thoughts, lengths, arrivals, slots; each row against the slow one."""
    model = tiny_model(family)
    shared = 0
    for case in range(80):
        rng = random.Random(f"{family}/{case}")
        monkeypatch.setattr(thinking_engine, "PASS_POSITIONS", rng.choice([1, 60, 2048]))
        eos, questions = rng.randrange(1, LATENT), []
        requests = [draw_request(rng, questions, model, eos) for _ in range(rng.randint(1, 7))]
        engine = ThinkingEngine(LatentLoop(model), [eos], rng.randint(1, 4), 96)
        made = run_with_arrivals(engine, requests, rng)
        assert made == [slow_generate(model, request, eos, 96) for request in requests], case
        shared += engine.num_shared
    assert shared > 500
