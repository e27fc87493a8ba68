"""Batched, cached, continuous generation equals slow generation, token for token."""

import random
from dataclasses import replace

import pytest
from making_requests import (
    AT_ONCE,
    FAMILIES,
    LATENT,
    Ends,
    draw_request,
    draw_ways,
    prompt_of,
    run_with_arrivals,
)
from slow_loop import slow_generate
from transformers import AutoConfig, AutoModelForCausalLM

from coconut_ds.errors import ModelError
from coconut_ds.generation import slot_table, thinking_engine
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request, Thinking
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_any_requests_in_any_order_are_continued_as_each_is_alone(tiny_model, family, monkeypatch):
    """40 random cases per family: prompts, thoughts, ways to compute them, lengths, arrivals, slots; each request
    against the slow loop."""
    model = tiny_model(family)
    shared, ways = 0, set()
    for case in range(40):
        rng = random.Random(f"{family}/{case}")
        monkeypatch.setattr(thinking_engine, "PASS_POSITIONS", rng.choice([1, 60, 2048]))
        eos, questions = rng.randrange(1, LATENT), []
        drawn = [draw_request(rng, questions, model, eos) for _ in range(rng.randint(1, 7))]
        requests = draw_ways(rng, drawn)
        engine = ThinkingEngine(LatentLoop(model), [eos], rng.randint(1, 4), 96)
        made = run_with_arrivals(engine, requests, rng)
        slow = [slow_generate(model, request, eos, 96) for request in requests]
        assert [one.tokens for one in made] == slow, case
        shared += engine.num_shared
        if len(requests) > 1:
            ways |= {request.at_once.how for request in requests if request.at_once}
    assert shared > 250
    assert ways == set(AT_ONCE), "each way, while other requests run"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_the_slow_one(tiny_model, family):
    """A few requests: with and without thoughts, one that starts thinking by itself, one at the context's end."""
    model = tiny_model(family)
    alone = Request(prompt_of([4, 9, 4], 0, ()), 7)
    start = slow_generate(model, alone, 0)[1]
    requests = [
        Request(prompt_of([5, 6, 7, 8], 3), 7),
        Request(prompt_of([9], 0), 7),
        Request(prompt_of([*range(1, 30)], 8), 7, suppress=(3, 5, LATENT)),
        replace(alone, thinking=Thinking(start, 3, 4)),
        Request(prompt_of([7] * 90, 2), 20),
    ]
    made = generate(LatentLoop(model), requests, [0], slots=2)
    assert [one.tokens for one in made] == [slow_generate(model, request, 0, 96) for request in requests]
    assert [one.num_thoughts for one in made] == [3, 0, 8, 4, 2]
    assert made[4].finish_reason == "length"
    assert len(made[4].tokens) == 96 - 93


def test_no_prompt_that_could_be_copied_is_overlooked(tiny_model, monkeypatch):
    """A prompt is compared only with those that begin as it does. Comparing it with all gives the same shares."""
    loop, both = LatentLoop(tiny_model("gpt2")), []
    for compares_all in (False, True):
        if compares_all:
            monkeypatch.setattr(slot_table, "_start", lambda beginning: ())
        shares = []
        for case in range(10):
            rng = random.Random(f"alike/{case}")
            starts = [[start] * 15 for start in (1, 2, 3)]
            questions = [rng.choice(starts) + [rng.randint(1, 2) for _ in range(rng.randint(0, 9))] for _ in range(12)]
            requests = [Request(prompt_of(question, rng.randint(0, 2)), 3) for question in questions]
            requests = [replace(request, owner=rng.choice(["", "x"])) for request in requests]
            engine = ThinkingEngine(loop, [0], rng.randint(2, 5), 96)
            shares.append([one.num_shared for one in run_with_arrivals(engine, requests, rng)])
        both.append(shares)
    assert both[0] == both[1]
    assert sum(map(sum, both[0])) > 400


def test_equal_beginnings_are_encoded_once(tiny_model):
    """Samples of a prompt, several numbers of thoughts, a long shared beginning: each position is encoded once."""
    loop, encoded = LatentLoop(tiny_model("llama")), []
    states = loop.states

    def counting(embeds, *arguments, **named):
        encoded.append(embeds.shape[0] * embeds.shape[1] if embeds.shape[1] > 1 else 0)
        return states(embeds, *arguments, **named)

    loop.states = counting
    question = [rng % 30 + 1 for rng in range(40)]
    sweep = [Request(prompt_of(question, count), 3) for count in range(6)]
    others = [Request(prompt_of([*question[:30], *range(20, 28)], 2), 3), Request(prompt_of([3] * 25, 1), 3)]
    made = generate(loop, [*sweep, *sweep[3].samples(3), *others], [0], slots=4)
    assert sum(encoded) == 41 + 8 + 25
    slow = [slow_generate(tiny_model("llama"), request, 0) for request in (*sweep, *[sweep[3]] * 3, *others)]
    assert [one.tokens for one in made] == slow
    assert [one.num_shared for one in made] == [0, *[39] * 8, 30, 0]


def test_a_cancelled_request_leaves_no_trace(tiny_model):
    model = tiny_model("gpt2")
    engine, ends = ThinkingEngine(LatentLoop(model), [0], 2, 96), Ends()
    requests = [Request(prompt_of([n, n + 1], 2), 6) for n in range(1, 5)]
    tickets = [engine.submit(request, ends) for request in requests]
    for _ in range(4):
        engine.step(engine.due())
    assert engine.cancel(tickets[0])
    assert engine.cancel(tickets[3])
    assert not engine.cancel(tickets[3])
    engine.run()
    assert {ticket: one.tokens for ticket, one in ends.completions.items()} == {
        tickets[n]: slow_generate(model, requests[n], 0) for n in (1, 2)
    }


def test_ranks_make_the_same_passes_whatever_they_have_to_do(tiny_model):
    """ZeRO-3 needs each rank to call the same modules in the same order; here one rank has no request at all."""
    model, calls = tiny_model("qwen3"), [[], []]
    work = [[Request(prompt_of([n, 3, n], n), n + 1) for n in range(1, 5)], []]
    loops = [LatentLoop(model) for _ in work]
    for loop, seen in zip(loops, calls, strict=True):
        for name in ("embed", "states", "head"):
            original = getattr(loop, name)

            def noting(*given, seen=seen, name=name, original=original, **named):
                seen.append(name)
                return original(*given, **named)

            setattr(loop, name, noting)
    engines = [ThinkingEngine(loop, [0], 2, 96) for loop in loops]
    ends = Ends()
    for request in work[0]:
        engines[0].submit(request, ends)
    while op := max(engine.due() for engine in engines):
        for engine in engines:
            engine.step(op)
    assert calls[0] == calls[1]
    assert [ends.completions[n].tokens for n in range(4)] == [slow_generate(model, one, 0) for one in work[0]]


def test_the_cache_has_the_size_of_its_shape_and_the_model_is_unchanged(tiny_model):
    model = tiny_model("llama")
    engine = ThinkingEngine(LatentLoop(model), [0], 3, 50)
    engine.submit(Request(prompt_of([4, 5], 2), 4))
    assert engine.cache.num_bytes == 0
    engine.run()
    assert engine.cache.num_bytes == 2 * 2 * 3 * 2 * 50 * 8 * 4
    assert model.config._attn_implementation == "sdpa"


def test_models_with_an_attention_of_their_own_are_refused():
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
    config = AutoConfig.for_model("gptj", vocab_size=20, bos_token_id=0, eos_token_id=0, **shape)
    with pytest.raises(ModelError, match="do not accept an attention function"):
        ThinkingEngine(LatentLoop(AutoModelForCausalLM.from_config(config)), [0], 1, 12)


def test_a_prompt_that_was_cancelled_before_it_was_encoded_is_not_taken_for_encoded(tiny_model):
    model = tiny_model("gpt2")
    engine, ends = ThinkingEngine(LatentLoop(model), [0], 1, 96), Ends()
    request = Request(prompt_of([n % 30 + 1 for n in range(30)], 2), 4)
    ticket = engine.submit(request, ends)
    assert engine.due() is Op.ENCODE
    engine.cancel(ticket)
    ticket = engine.submit(request, ends)
    engine.run()
    assert ends.completions[ticket].tokens == slow_generate(model, request, 0)
    assert engine.num_shared == 0
