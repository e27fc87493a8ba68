"""Prompts that are encoded in pieces: the tokens are those of whole prompts, and running requests do not wait long."""

import random
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from making_requests import LATENT, Ends, draw_request, draw_ways, prompt_of, run_with_arrivals
from recording import Recorder
from slow_loop import slow_generate
from tiny_models import make_model

from coconut_ds.generation import prefill, spans, thinking_engine
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prefill import default_piece
from coconut_ds.generation.requests import AtOnce, Request
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.latent_loop import LatentLoop


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pieces_change_no_token(tiny_model, family, monkeypatch):
    """Random requests of up to three owners: prompts, thoughts, ways to compute them, lengths, arrivals, slots, sizes
    of pieces and of passes, spans of rows, steps of fixed shape; each request against the slow loop."""
    model, pieces = tiny_model(family), 0
    extend = thinking_engine.SlotPasses.extend

    def counting(self, slot, start, embeds, all_states=True):
        nonlocal pieces
        pieces += not all_states
        return extend(self, slot, start, embeds, all_states)

    monkeypatch.setattr(thinking_engine.SlotPasses, "extend", counting)
    for case in range(3):
        rng = random.Random(f"pieces/{family}/{case}")
        monkeypatch.setattr(thinking_engine, "PASS_POSITIONS", rng.choice([8, 16]))
        monkeypatch.setattr(prefill, "EACH_ROW", rng.choice([0, 1]))
        monkeypatch.setattr(prefill, "FEW", rng.choice([1, 4]))
        monkeypatch.setattr(spans, "SPLIT_BYTES", rng.choice([0, 1024]))
        eos, questions = rng.randrange(1, LATENT), [[rng.randrange(1, LATENT) for _ in range(40)]]
        drawn = [draw_request(rng, questions, model, eos) for _ in range(rng.randint(2, 7))]
        requests = [replace(one, owner=rng.choice("aab")) for one in draw_ways(rng, drawn)]
        capturer = Recorder() if case == 2 else None
        piece = rng.choice([1, 3, 8])
        engine = ThinkingEngine(LatentLoop(model), [eos], rng.randint(1, 4), 96, capturer=capturer, piece=piece)
        made = run_with_arrivals(engine, requests, rng)
        assert [one.tokens for one in made] == [slow_generate(model, request, eos, 96) for request in requests], case
    assert pieces > 4


def test_the_last_piece_may_be_a_single_position(tiny_model, monkeypatch):
    """With steps of fixed shape, in which a prompt that is being encoded and thoughts that are computed together have
    a place: logits at that place are not taken for those after the next piece or pass."""
    monkeypatch.setattr(prefill, "EACH_ROW", 0)
    model = tiny_model("gpt2")
    engine = ThinkingEngine(LatentLoop(model), [LATENT], 3, 96, capturer=Recorder(), piece=2)
    late = [
        Request(prompt_of([9, 8, 7, 6, 5], 0, ()), 3),
        Request(prompt_of([5, 6], 1, ()), 3, at_once=AtOnce(Parallel("jacobi", 2), LATENT)),
    ]
    stream = Request(prompt_of([4, 5], 1), 30, min_new_tokens=30)

    class Sends(Ends):
        """Submits the next request as soon as one ends, so that it gets this slot, which is before the stream's."""

        def on_done(self, ticket, completion):
            super().on_done(ticket, completion)
            if ticket < 2:
                again[engine.submit(late[ticket], ends)] = ticket

    ends, again = Sends(), {}
    for request in (*late, stream):
        engine.submit(request, ends)
    engine.run()
    expected = [slow_generate(model, request, LATENT) for request in (*late, stream)]
    assert [ends.completions[n].tokens for n in range(3)] == expected
    assert [ends.completions[n].tokens for n in again] == [expected[first] for first in again.values()]
    assert len(again) == 2


def test_running_requests_wait_for_few_positions_only(tiny_model, monkeypatch):
    """However many prompts arrive, and thoughts that are computed together: between two steps, no more positions than
    a piece and the thoughts of one request, and every prompt is encoded at last although shorter ones keep arriving."""
    monkeypatch.setattr(prefill, "EACH_ROW", 0)
    loop, ends = LatentLoop(tiny_model("gpt2")), Ends()
    engine, states, waited, longest = ThinkingEngine(loop, [LATENT], 6, 96, piece=24), loop.states, 0, 0

    def counting(embeds, *arguments, **named):
        nonlocal waited, longest
        longest = max(longest, waited)
        waited = 0 if embeds.shape[1] == 1 else waited + embeds.shape[0] * embeds.shape[1]
        return states(embeds, *arguments, **named)

    stream = engine.submit(Request(prompt_of([4, 5], 1), 60, min_new_tokens=60, suppress=(LATENT,)), ends)
    while engine.due() is not Op.ADVANCE:
        engine.step(engine.due())
    loop.states = counting
    together = AtOnce(Parallel("jacobi", 8), LATENT)
    late = [engine.submit(Request(prompt_of([n, *[7] * 60], 8, ()), 2, at_once=together), ends) for n in (1, 2)]
    number = 10
    while stream not in ends.completions:
        if engine.num_waiting + engine.num_running < 6:
            number += 1
            engine.submit(Request(prompt_of([number % 30 + 1, *[3] * (number % 20)], 0), 1), ends)
        engine.step(engine.due())
    assert 16 < longest <= 24 + 8
    assert set(late) <= set(ends.completions)
    assert len(ends.completions) > 10


def test_only_an_owner_shares_the_beginning_of_a_prompt(tiny_model):
    """The same question of another owner is encoded again: what is said to be cached tells nothing about others."""
    loop, question = LatentLoop(tiny_model("llama")), [n % 30 + 1 for n in range(40)]
    request = Request(prompt_of(question, 2), 5, log_probabilities=True)
    engine, ends = ThinkingEngine(loop, [LATENT], 2, 96), Ends()
    for owner in ("a", "a", "b", "b"):
        ticket = engine.submit(replace(request, owner=owner), ends)
        engine.run()
        assert ends.completions[ticket].tokens == ends.completions[0].tokens
    for owner in ("c", "d", "c"):
        engine.submit(replace(request, owner=owner), ends)
    engine.run()
    assert [ends.completions[n].num_shared for n in range(7)] == [0, 39, 0, 39, 0, 0, 39]
    assert ends.completions[2].scores == ends.completions[0].scores


def test_counters_can_be_read_from_other_threads(tiny_model):
    """While requests come, share prompts, move, and end; the numbers of requests and positions are never too large."""
    loop, ends = LatentLoop(tiny_model("gpt2")), Ends()
    engine, stop, errors = ThinkingEngine(loop, [LATENT], 4, 96, piece=8), threading.Event(), []
    submitted = Counter[str]()

    def read():
        shared = 0
        try:
            while not stop.wait(1e-5):
                # In this order: each number is read before the total that bounds it.
                running, waiting, held = engine.num_running, engine.num_waiting, engine.num_held
                before, shared = shared, engine.num_shared
                assert running + waiting <= submitted["requests"]
                assert held <= submitted["positions"]
                assert before <= shared <= submitted["prompts"]
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(18):
        # A prompt of 20 tokens, a thought and its markers.
        request = Request(prompt_of([n % 3 + 1] * 20, 1), n % 4 + 1)
        submitted.update(requests=1, prompts=len(request.prompt), positions=len(request.prompt) + n % 4 + 1)
        engine.submit(request, ends)
        if n % 6 == 5:
            engine.run()
    stop.set()
    reader.join()
    assert not errors
    assert (engine.num_running, engine.num_waiting, engine.num_held) == (0, 0, 0)
    assert engine.num_shared == sum(one.num_shared for one in ends.completions.values()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_taken_at_once_and_given_back_at_once(dtype):
    """In bf16 on a CPU, where slots become longer with their requests, these still use the memory that was taken."""
    loop, requests = LatentLoop(make_model("llama").to(dtype)), [Request(prompt_of([n] * 30, 3), 9) for n in (4, 5, 6)]
    requests = [Request(prompt_of([7], 1), 20), *requests, Request(prompt_of([8] * 70, 3), 9)]
    engine, ends = ThinkingEngine(loop, [LATENT], 2, 96), Ends()
    engine.take_memory()
    taken = engine.cache.num_bytes
    assert taken == 2 * 2 * 2 * 2 * 96 * 8 * dtype.itemsize
    whole = [tensor.data_ptr() for layer in engine.cache.slot_layers for tensor in layer._whole]
    for request in requests:
        engine.submit(request, ends)
    engine.run()
    assert [tensor.data_ptr() for layer in engine.cache.slot_layers for tensor in layer._whole] == whole
    assert [layer.keys.data_ptr() for layer in engine.cache.slot_layers] == whole[::2]
    assert engine.cache.num_bytes == taken
    expected = generate(loop, requests, [LATENT], slots=2)
    assert [ends.completions[n].tokens for n in range(5)] == [one.tokens for one in expected]
    seen = engine.cache.slot_layers[0].keys
    engine.close()
    assert engine.cache.num_bytes == 0
    assert seen.untyped_storage().nbytes() == 0, "although the tensor is still referred to"


def test_the_default_piece_depends_on_type_and_device(tiny_model):
    loop = LatentLoop(tiny_model("gpt2"))
    assert default_piece(loop) == 96
    assert default_piece(LatentLoop(make_model("gpt2").to(torch.bfloat16))) == 256
