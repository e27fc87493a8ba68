"""A request that fails, fails alone: the others get the same answers, bit for bit, also in the slot that it leaves."""

import random
from dataclasses import replace

import pytest
import torch
from making_requests import LATENT, Ends, draw_request, draw_ways, prompt_of
from recording import Recorder
from slow_loop import slow_generate
from tiny_models import VOCABULARY, make_model

from coconut_ds.errors import DataError, ModelError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Request, Sampling, Thinking
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.thought_noise import NoiseSettings, SampleNoise

QUESTION = [n % 30 + 1 for n in range(20)]
PLAIN = Request(
    prompt_of(QUESTION, 4), 6, min_new_tokens=6, suppress=(LATENT,), log_probabilities=True, num_likeliest=3
)
TOGETHER = replace(PLAIN, at_once=AtOnce(Parallel("jacobi", 3), LATENT))
OTHERS = [
    replace(PLAIN, prompt=prompt_of([7, 8, 9], 3), keep_thoughts=True),
    replace(PLAIN, prompt=prompt_of([9, 8, 7, 6], 2), sampling=Sampling(1.1, seed=5)),
    replace(PLAIN, prompt=prompt_of([5] * 30, 5), keep_thoughts=True),
    replace(TOGETHER, prompt=prompt_of([5, 6], 4)),
    replace(PLAIN, prompt=prompt_of([11, 12], 1), continuation=(4, 5, 6)),
]


class Broken(RuntimeError):
    """What a callback raises."""


class Hears(Ends):
    """Keeps completions and failures by ticket, and raises when ``raising``, the name of a method, is called the second
    time (``on_done``: the first)."""

    def __init__(self, raising=""):
        super().__init__()
        self.failures, self._raising, self._calls = {}, raising, 0

    def _called(self, name):
        if name == self._raising:
            self._calls += 1
            if self._calls == 2 or name == "on_done":
                raise Broken

    def on_thought(self, ticket, index, state):
        self._called("on_thought")

    def on_token(self, ticket, token, score):
        self._called("on_token")

    def on_done(self, ticket, completion):
        self._called("on_done")
        super().on_done(ticket, completion)

    def on_failed(self, ticket, error):
        assert ticket not in self.failures
        assert ticket not in self.completions
        self.failures[ticket] = error


def breaks(index, vector):
    if index == 2:
        raise Broken
    return vector


def times(factor, first=0):
    """An ``edit_thought`` that multiplies the vectors from index ``first`` on."""
    return lambda index, vector: vector * factor if index >= first else vector


def decode(tokens):
    raise Broken


NAN = replace(PLAIN, edit_thought=times(float("nan"), 1))
FAILING = {
    "on_thought": (PLAIN, "on_thought", Broken),
    "on_thought together": (TOGETHER, "on_thought", Broken),
    "on_token": (PLAIN, "on_token", Broken),
    "on_done": (PLAIN, "on_done", Broken),
    "decode": (replace(PLAIN, stop=("x",), min_new_tokens=2), "", Broken),
    "edit": (replace(PLAIN, edit_thought=breaks), "", Broken),
    "edit together": (replace(TOGETHER, edit_thought=breaks), "", Broken),
    "shape": (replace(PLAIN, edit_thought=lambda _, vector: vector[:3]), "", RuntimeError),
    "shape together": (replace(TOGETHER, edit_thought=lambda _, vector: vector[:3]), "", RuntimeError),
    "NaN": (NAN, "", ModelError),
    "NaN together": (replace(NAN, at_once=TOGETHER.at_once), "", ModelError),
    "infinity": (replace(PLAIN, edit_thought=times(float("inf"))), "", ModelError),
    "NaN scored": (replace(NAN, continuation=(5, 6)), "", ModelError),
    "NaN sampled": (replace(NAN, sampling=Sampling(1.0)), "", ModelError),
    "NaN filtered": (replace(NAN, sampling=Sampling(1.0, top_k=3, top_p=0.5)), "", ModelError),
    "NaN where thinking may end": (replace(NAN, min_thoughts=3, end_thinking=3), "", ModelError),
    "no token left": (
        replace(PLAIN, suppress=(*range(5), *range(6, VOCABULARY)), thinking=Thinking(5, 3, 1)),
        "",
        ModelError,
    ),
}


def run(model, bad, raising, fixed_shape, cancel_after=0):
    """The completions of the others, the error of the request ``bad``, and the number of steps until it failed."""
    engine = ThinkingEngine(LatentLoop(model), [LATENT], 3, 96, decode, Recorder() if fixed_shape else None)
    ends, own, steps, failed = Hears(), Hears(raising), 0, 0
    engine.submit(OTHERS[0], ends)
    ticket = engine.submit(bad, own)
    for request in OTHERS[1:]:
        engine.submit(request, ends)
    while op := engine.due():
        failed = failed or (steps if own.failures else 0)
        engine.step(op)
        steps += 1
        if steps == cancel_after:
            engine.cancel(ticket)
    assert not ends.failures
    return ends.completions, own.failures.get(ticket), failed


@pytest.mark.parametrize("name", FAILING)
def test_what_belongs_to_a_request_fails_it_alone(tiny_model, name):
    """The others equal, in every bit of tokens, scores and thoughts, a run in which the request is cancelled at that
    moment instead."""
    bad, raising, expected = FAILING[name]
    good = PLAIN if bad.at_once is None else TOGETHER
    kept = ("continuation", "min_thoughts", "end_thinking", "suppress", "thinking")
    good = replace(good, **{key: getattr(bad, key) for key in kept})
    for fixed_shape in (False, True) if name in ("on_token", "NaN", "NaN sampled") else (False,):
        made, error, failed = run(tiny_model("gpt2"), bad, raising, fixed_shape)
        assert isinstance(error, expected)
        same, none, _ = run(tiny_model("gpt2"), good, "", fixed_shape, cancel_after=failed)
        assert none is None
        assert made.keys() == same.keys()
        assert len(made) == len(OTHERS)
        for ticket, one in made.items():
            other = same[ticket]
            assert (one.tokens, one.scores, one.num_thoughts) == (other.tokens, other.scores, other.num_thoughts)
            assert one.thoughts is None or torch.equal(one.thoughts, other.thoughts)


@pytest.mark.parametrize(("family", "fixed_shape"), [("llama", False), ("gpt2", True)])
def test_numbers_that_are_not_finite_stay_with_their_request(tiny_model, family, fixed_shape):
    """Random requests, half of them poisoned at a random thought, some cancelled: the others are continued as each
    is alone, beside the poisoned ones and in the slots that these leave, wherever slots were moved or copied."""
    model, poisoned = tiny_model(family), 0
    for case in range(4):
        rng, questions = random.Random(f"{family}/{case}"), []
        drawn = draw_ways(rng, [draw_request(rng, questions, model, 0) for _ in range(9)])
        bad = {n for n, one in enumerate(drawn) if one.prompt.num_thoughts and rng.random() < 0.5}
        given = [
            replace(one, edit_thought=times(float("nan"), rng.randrange(one.prompt.num_thoughts))) if n in bad else one
            for n, one in enumerate(drawn)
        ]
        capturer = Recorder() if fixed_shape else None
        engine, ends = ThinkingEngine(LatentLoop(model), [0], rng.randint(2, 4), 96, capturer=capturer), Hears()
        tickets = [engine.submit(request, ends) for request in given]
        cancelled = {n for n in range(9) if rng.random() < 0.3}
        waiting = rng.sample(sorted(cancelled), len(cancelled))
        while op := engine.due():
            engine.step(op)
            if waiting and rng.random() < 0.2:
                engine.cancel(tickets[waiting.pop()])
        for n, one in enumerate(drawn):
            if n in bad:
                assert tickets[n] not in ends.completions
                poisoned += tickets[n] in ends.failures
            elif n not in cancelled:
                assert ends.completions[tickets[n]].tokens == slow_generate(model, one, 0, 96), (case, n)
    assert poisoned > 3


def test_a_token_with_a_broken_embedding_fails_the_requests_that_contain_it():
    """In its own prompt, where another prompt begins like it, and as the padding of other prompts."""
    model = make_model("llama")
    requests = [Request(prompt_of([*QUESTION, n, 5, 5, 5, 5, 5], 1), 4) for n in (7, 8, 33)]
    requests += [Request(prompt_of([33], 0), 4), Request(prompt_of([3, 4], 2), 4)]
    requests = [replace(request, suppress=(0, 33)) for request in requests]
    expected = [slow_generate(model, request, LATENT) for request in requests]
    for token in (33, 0):
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = float("nan")
    engine, ends = ThinkingEngine(LatentLoop(model), [LATENT], 5, 96), Hears()
    for _ in range(2):
        for request in requests:
            engine.submit(request, ends)
        engine.run()
    assert sorted(ends.failures) == [2, 3, 7, 8]
    assert {ticket: one.tokens for ticket, one in ends.completions.items()} == {
        ticket: expected[ticket % 5] for ticket in (0, 1, 4, 5, 6, 9)
    }


@pytest.mark.parametrize("cancels", [False, True])
def test_bf16_on_a_cpu_reads_no_slot_that_may_not_be_finite(cancels):
    """There, a step reads whole slots; the request before failed, or was cancelled when it already had a NaN."""
    loop = LatentLoop(make_model("llama").to(torch.bfloat16))
    engine, ends = ThinkingEngine(loop, [LATENT], 1, 96), Hears()
    short = replace(PLAIN, prompt=prompt_of([4, 5], 1))
    engine.submit(replace(NAN, prompt=prompt_of([5] * 30, 6)), ends)
    for _ in range(4):
        engine.step(engine.due())
    if cancels:
        engine.cancel(0)
    engine.submit(short, ends)
    engine.run()
    assert list(ends.failures) == ([] if cancels else [0])
    assert ends.completions[1].scores == generate(loop, [short], [LATENT])[0].scores


def test_offline_the_error_of_a_request_is_raised(tiny_model):
    with pytest.raises(ModelError, match=r"request 1: .* not finite"):
        generate(LatentLoop(tiny_model("gpt2")), [OTHERS[0], NAN], [0])
    with pytest.raises(Broken):
        generate(LatentLoop(tiny_model("gpt2")), [replace(PLAIN, edit_thought=breaks)], [0])


def test_more_likeliest_tokens_than_there_are(tiny_model):
    request = replace(PLAIN, num_likeliest=VOCABULARY + 7)
    (made,) = generate(LatentLoop(tiny_model("gpt2")), [request], [0])
    assert all(len(score.likeliest) == VOCABULARY for score in made.scores)
    assert {token for token, _ in made.scores[0].likeliest} == set(range(VOCABULARY))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": prompt_of([4, VOCABULARY], 1)}, "prompt: found token id 40; expected 0 to 39"),
        ({"prompt": prompt_of([4, -1], 1)}, "prompt: found token id -1"),
        ({"suppress": (3, VOCABULARY)}, "suppress: found token id 40"),
        ({"continuation": (VOCABULARY,)}, "continuation: found token id 40"),
        ({"thinking": Thinking(3, 99, 2)}, "thinking: found token id 99"),
        ({"at_once": AtOnce(Parallel("jacobi", 2), 99)}, "at_once.marker: found token id 99"),
        ({"suppress": tuple(range(1, VOCABULARY))}, "suppress: excludes all 40 tokens"),
        ({"noise": SampleNoise(NoiseSettings("svp"), "0")}, "noise: found svp"),
    ],
)
def test_what_no_pass_could_run_is_refused(tiny_model, change, message):
    engine = ThinkingEngine(LatentLoop(tiny_model("gpt2")), [0, VOCABULARY + 3], 1, 96)
    with pytest.raises(DataError, match=message):
        engine.submit(replace(PLAIN, **change))
    assert engine.num_waiting == 0
