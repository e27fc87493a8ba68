"""The thinking engine: all operations on one device, and the host syncs of each generated token."""

import itertools
from dataclasses import replace

import pytest
import torch
from making_requests import LATENT, Ends, prompt_of

import strict_device
from coconut_ds.generation import slot_passes, thinking_engine
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Request, Sampling, Thinking
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model import head
from coconut_ds.model.latent_loop import LatentLoop

DEVICE = strict_device.device()
EOS = (9,)
"""Values that are read from the device are 0, so the model always writes token 0 and never ends by itself."""
LONG = list(range(3, 23))
"""A question that is long enough to be copied from another request."""
PLAIN = Request(prompt_of([3, 4, 5, 6], 2), 4)
SHORT = Request(prompt_of([7], 0, ()), 4)
FOUR = replace(PLAIN, prompt=prompt_of([3, 4], 4))


def other_vector(index, state):
    return torch.ones_like(state) * index


REQUESTS = {
    "greedy": [PLAIN, SHORT, replace(PLAIN, prompt=prompt_of([3, 4], 3, (2, 5)), max_new_tokens=2)],
    "sampled": [
        replace(PLAIN, sampling=Sampling(0.7)),
        replace(PLAIN, sampling=Sampling(0.7, top_k=5, top_p=0.9)),
        replace(PLAIN, sampling=Sampling(1.0, top_p=0.5)),
        PLAIN,
    ],
    "log_probabilities": [
        replace(PLAIN, log_probabilities=True, num_likeliest=3),
        replace(PLAIN, continuation=(5, 6, 7)),
        replace(SHORT, log_probabilities=True),
        PLAIN,
    ],
    "bans": [
        replace(PLAIN, suppress=(LATENT, *range(2, 14))),
        replace(SHORT, min_new_tokens=3),
        replace(SHORT, stop=("x",)),
    ],
    "jacobi": [
        replace(FOUR, at_once=AtOnce(Parallel("jacobi", 3), LATENT), keep_thoughts=True),
        replace(FOUR, at_once=AtOnce(Parallel("jacobi", 2), LATENT), edit_thought=other_vector),
        SHORT,
    ],
    "looped": [
        replace(FOUR, at_once=AtOnce(Parallel("looped", None, 2), LATENT), keep_thoughts=True),
        replace(FOUR, at_once=AtOnce(Parallel("looped", 1), LATENT), edit_thought=other_vector),
        SHORT,
    ],
    "thoughts": [
        replace(PLAIN, edit_thought=other_vector, keep_thoughts=True),
        replace(SHORT, keep_thoughts=True),
        replace(PLAIN, prompt=prompt_of([3, 4], 5), min_thoughts=2, end_thinking=0),
        replace(PLAIN, prompt=prompt_of([3, 4], 4), min_thoughts=1, end_thinking=1),
        replace(SHORT, thinking=Thinking(0, 2, 3), max_new_tokens=6),
    ],
    "reuse": [
        replace(PLAIN, prompt=prompt_of(LONG, 1)),
        replace(PLAIN, prompt=prompt_of([*LONG, 30, 31], 2), max_new_tokens=2),
        replace(PLAIN, prompt=prompt_of([*LONG, *range(24, 34)], 2)),
        *replace(PLAIN, prompt=prompt_of(LONG, 2), sampling=Sampling(1.0)).samples(2),
    ],
}


@pytest.fixture
def loop(syncs) -> LatentLoop:
    return loop_of("gpt2")


def loop_of(family: str) -> LatentLoop:
    return LatentLoop(strict_device.make_model(family)).eval()


def run(loop, requests, slots=3):
    return generate(loop, requests, EOS, slots, decode=lambda tokens: " ".join(map(str, tokens)))


def written(request: Request) -> list[int]:
    """The tokens of a completion: those that are given, or zeros, which are read from the device."""
    return list(request.continuation or [0] * request.num_new)


def in_turns(*families: str) -> list[tuple[str, str]]:
    """Each kind of request with one of the families."""
    return list(zip(REQUESTS, itertools.cycle(families), strict=False))


@pytest.mark.parametrize(("name", "family"), in_turns("gpt2", "llama"))
def test_all_kinds_of_requests(syncs, name, family):
    """Three slots for up to five requests, so that slots are freed, filled again, and moved."""
    requests = REQUESTS[name]
    made = run(loop_of(family), requests)
    for request, completion in zip(requests, made, strict=True):
        assert completion.tokens == written(request)
        thoughts = completion.thoughts
        assert thoughts is None or thoughts.device.type == "cpu"


def test_thoughts_that_go_through_a_feed(syncs):
    dtype, requests = torch.bfloat16, [*REQUESTS["jacobi"], *REQUESTS["thoughts"]]
    loop = LatentLoop(strict_device.make_model("llama", dtype), feed=strict_device.make_feed(dtype)).eval()
    made = run(loop, requests)
    assert [completion.tokens for completion in made] == list(map(written, requests))
    kept = [tensor for one in made if one.thoughts is not None for tensor in (one.thoughts, one.fed)]
    assert {tensor.device.type for tensor in kept} <= {"cpu"}


def test_bf16(syncs):
    loop = LatentLoop(strict_device.make_model("llama", torch.bfloat16)).eval()
    requests = [*REQUESTS["greedy"], *REQUESTS["sampled"], *REQUESTS["jacobi"]]
    made = run(loop, requests, slots=5)
    assert [completion.tokens for completion in made] == list(map(written, requests))


def test_operations_of_other_ranks(loop):
    """Under ZeRO-3, a rank without work makes the passes of the others."""
    engine = ThinkingEngine(loop, EOS, 2, 16)
    for op in (Op.ENCODE, Op.ITERATE, Op.CHOOSE, Op.ADVANCE):
        engine.step(op)
    ends = Ends()
    running, _, waiting = (engine.submit(request, ends) for request in (PLAIN, SHORT, PLAIN))
    engine.step(engine.due())
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    assert engine.cancel(waiting)
    assert engine.cancel(running)
    assert not engine.cancel(running)
    engine.run()
    assert list(ends.completions) == [1]
    assert (engine.num_running, engine.num_waiting, engine.num_held, engine.num_shared) == (0, 0, 0, 0)
    assert engine.cache.num_bytes


def syncs_a_token(syncs, loop, requests) -> tuple[float, float]:
    """Reads and copies for each token that all rows write together, after prompts and thoughts."""
    found = []
    for count in (3, 7):
        with syncs.counted() as counted:
            run(loop, [replace(request, max_new_tokens=count) for request in requests], slots=len(requests))
        found.append(counted)
    few, many = found
    print(many)
    return (many.reads - few.reads) / 4, (many.copies - few.copies) / 4


class Refusing:
    """A capturer whose steps must not wait for the device, and whose replays run the step again."""

    def __init__(self, syncs):
        self._syncs, self.captures, self.replays, self.fails = syncs, 0, 0, False

    def warm_up(self, step):
        with self._syncs.refused():
            step()

    def capture(self, step):
        self.captures += 1
        if self.fails:
            raise RuntimeError("not now")
        with self._syncs.refused():
            step()

        def replay():
            self.replays += 1
            self.warm_up(step)

        return replay


@pytest.fixture
def capturing(syncs, monkeypatch):
    """Makes engines use steps of fixed shape, as they do on CUDA."""
    capturer = Refusing(syncs)
    monkeypatch.setattr(thinking_engine, "capturer_for", lambda loop: capturer)
    return capturer


@pytest.mark.parametrize(("name", "family"), in_turns("llama", "gpt2"))
def test_all_kinds_of_requests_with_steps_of_fixed_shape(syncs, name, family, capturing):
    """No step waits for the device, and its buffers stay where they are, unless a request bans more tokens."""
    engine, ends = ThinkingEngine(loop_of(family), EOS, 3, 64, decode=lambda tokens: " ".join(map(str, tokens))), Ends()
    for request in REQUESTS[name]:
        engine.submit(request, ends)
    places, orders = [], {}
    while op := engine.due():
        engine.step(op)
        if op is Op.ADVANCE:
            steps, layers = engine._steps, engine.cache.slot_layers
            orders.setdefault(steps._orders.shape, set()).add(steps._orders.data_ptr())
            buffers = [steps._logits, steps._likeliest, engine._passes.last]
            buffers += [tensor for layer in layers for tensor in (layer.keys, layer.values)]
            places.append([buffer.data_ptr() for buffer in buffers])
    assert len(places) > 1
    assert all(each == places[0] for each in places)
    assert {len(each) for each in orders.values()} == {1}
    for ticket, request in enumerate(REQUESTS[name]):
        assert ends.completions[ticket].tokens == written(request)


@pytest.mark.parametrize(("name", "family"), [("reuse", "gpt2"), ("jacobi", "llama"), ("greedy", "gpt2")])
def test_prompts_in_pieces(syncs, name, family, capturing):
    engine, ends = ThinkingEngine(loop_of(family), EOS, 3, 64, piece=5), Ends()
    for request in REQUESTS[name]:
        engine.submit(request, ends)
    engine.run()
    assert [ends.completions[n].tokens for n in range(len(REQUESTS[name]))] == list(map(written, REQUESTS[name]))


def test_requests_that_fail_or_are_cancelled(loop):
    """Their slots are cleared on the device."""

    def breaks(index, state):
        raise ZeroDivisionError

    engine, ends = ThinkingEngine(loop, EOS, 3, 64), Ends()
    failures = []
    ends.on_failed = lambda ticket, error: failures.append(ticket)
    for request in (FOUR, replace(FOUR, edit_thought=breaks), replace(FOUR, max_new_tokens=9), FOUR, SHORT):
        engine.submit(request, ends)
    for _ in range(3):
        engine.step(engine.due())
    assert engine.cancel(0)
    engine.run()
    assert failures == [1]
    assert [ends.completions[n].tokens for n in (2, 3, 4)] == [[0] * 9, [0] * 4, [0] * 4]


def test_steps_that_cannot_be_captured(loop, capturing):
    capturing.fails = True
    run(loop, [replace(PLAIN, max_new_tokens=8)])
    assert (capturing.captures, capturing.replays) == (1, 0)


def test_wide_passes(loop, monkeypatch):
    monkeypatch.setattr(slot_passes, "WIDENING", (DEVICE.type,))
    requests = [*REQUESTS["reuse"], *REQUESTS["jacobi"]]
    assert [completion.tokens for completion in run(loop, requests)] == list(map(written, requests))


A_TOKEN = dict.fromkeys(("greedy", "sampled", "log_probabilities", "bans"), (1, 0))
"""Host syncs for each token: reads and copies, over all rows together."""


@pytest.mark.parametrize("name", A_TOKEN)
def test_syncs_of_a_token(syncs, name):
    loop = LatentLoop(strict_device.make_model("gpt2")).eval()
    requests = [request for request in REQUESTS[name] if request.continuation is None]
    assert syncs_a_token(syncs, loop, requests) == A_TOKEN[name]


def test_a_feed_adds_no_sync(syncs, capturing):
    loop = LatentLoop(strict_device.make_model("gpt2"), feed=strict_device.make_feed()).eval()
    assert syncs_a_token(syncs, loop, REQUESTS["greedy"]) == A_TOKEN["greedy"]
    assert capturing.replays >= 1


@pytest.mark.parametrize("name", A_TOKEN)
def test_syncs_of_a_token_with_steps_of_fixed_shape(syncs, name, capturing):
    test_syncs_of_a_token(syncs, name)
    assert capturing.replays >= 1


def test_the_head_runs_where_the_states_are(syncs):
    loop = LatentLoop(strict_device.make_model("gpt2")).eval()
    with torch.no_grad():
        states = torch.zeros(2, loop.width, device=DEVICE)
        assert not head._is_plain(loop.model.lm_head, dict(loop.model.lm_head.named_parameters()), states)
        assert loop.head(states).device == DEVICE
