"""What thoughts go through before they are fed back: training and generation equal the slow loop with the same feed."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from comparing_loops import compare
from making_feeds import SPEC, make_feed
from making_layouts import LONG, SOME
from making_requests import AT_ONCE, LATENT, Ends, draw_request, prompt_of, run_with_arrivals
from recording import Recorder
from slow_loop import slow_generate, slow_inputs
from tiny_models import make_model

from coconut_ds.generation import step_graphs, steps
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Completion, Request
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import collate
from coconut_ds.model.feed import FeedSpec, build_feed
from coconut_ds.model.latent_loop import LatentLoop, latent_loss

WEIGHTS = [0.5, 1.0, 0.25]


def test_the_projection_is_codis():
    """Two linear layers with the exact GELU between them, then a layer norm; drawn from its seed alone."""
    feed, states = make_feed(), torch.randn(2, 3, 32)
    state = dict(feed.named_parameters())
    hidden = states @ state["inner.weight"].T + state["inner.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    made = hidden @ state["outer.weight"].T + state["outer.bias"]
    centred = made - made.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(feed(states), scaled * state["norm.weight"] + state["norm.bias"])
    assert state["inner.weight"].shape == (24, 32)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (build_feed(SPEC, 32, seed).inner.weight for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before), "what is drawn afterwards does not depend on the feed"


@pytest.mark.parametrize(
    ("family", "way", "iterations"),
    [
        ("gpt2", "sdpa", None),
        ("llama", "sdpa", None),
        ("gpt2", "checkpointing", None),
        ("llama", "eager", None),
        ("gpt2", "sdpa", 1),
        ("llama", "checkpointing", 2),
        ("qwen3", "eager", 5),
    ],
)
def test_loss_and_all_gradients_equal_the_slow_loop(family, way, iterations):
    """Rows with two, three and no thoughts; questions of which few states are read; more passes than any row needs; and
    a batch without thoughts, in which the feed has gradients of zero."""
    model = make_model(family)
    model.config._attn_implementation = "eager" if way == "eager" else "sdpa"
    for layouts, extra in ((SOME, 0), (SOME[1:], 2), (LONG, 0), (SOME[2:], 0)):
        options = {"checkpointing": way == "checkpointing", "iterations": (iterations, iterations)}
        compare(model, layouts, WEIGHTS[: len(layouts)], extra, feed=make_feed(), **options)
        if iterations:
            looped = Parallel("looped", None, block=iterations)
            compare(model, layouts, WEIGHTS[: len(layouts)], extra, feed=make_feed(), parallel=looped)


@pytest.mark.parametrize("defer", [False, True])
def test_bf16_is_close_to_fp32(defer):
    """Each of some twenty roundings on the way to a gradient changes a number by at most 2**-8 of it."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model, feed = make_model("gpt2").to(dtype), make_feed().to(dtype)
        loop = LatentLoop(model, defer_gradients=defer, feed=feed)
        latent_loss(loop, *collate(SOME[:2], [0.5, 1.0], 3, pad_id=3)).backward()
        found.append([parameter.grad.float() for parameter in feed.parameters()])
        assert {parameter.grad.dtype for parameter in feed.parameters()} == {dtype}
    for exact, rounded in zip(*found, strict=True):
        assert float((rounded - exact).norm()) <= 0.25 * float(exact.norm())


def test_without_a_feed_nothing_is_called_and_no_name_changes():
    """The loop has the modules and weights that it had without feeds."""
    loop = LatentLoop(make_model("gpt2"))
    assert loop.feed is None
    assert {name.split(".")[0] for name in loop.state_dict()} == {"model"}
    assert [name for name, _ in loop.named_children()] == ["model", "auxiliary"]
    states = torch.randn(2, 32)
    assert loop.fed(states) is states


@torch.no_grad()
def slow_thoughts(model, request: Request, feed) -> tuple[torch.Tensor, torch.Tensor]:
    """The thoughts [L, D] of a request and what is fed back for them, by the slow loop."""
    first, count = request.prompt.first_thought, request.prompt.num_thoughts
    how, before = request.at_once and request.at_once.how, slice(first - 1, first - 1 + count)
    inputs = read = slow_inputs(model, request.prompt, how, feed)
    passes = min(how.iterations, count) if how is not None and how.kind == "jacobi" else None
    if passes is not None:
        # The inputs of the last pass are made of the states of the pass before it; the first pass has none before it.
        read = slow_inputs(model, request.prompt, Parallel("jacobi", max(passes - 1, 1)), feed)
    thoughts = model.base_model(inputs_embeds=read, use_cache=False).last_hidden_state[0, before].clone()
    if passes == 1:
        thoughts[1:] = model.get_input_embeddings()(torch.tensor(LATENT))
    return thoughts, inputs[0, first : first + count]


@pytest.mark.parametrize(("family", "graphs"), [("gpt2", False), ("llama", True)])
def test_generation_equals_the_slow_one_token_for_token_and_thought_for_thought(family, graphs, monkeypatch):
    """Requests of every kind arrive at random and share slots, with plain steps and with steps that graphs repeat."""
    monkeypatch.setattr(steps, "FEWEST_COLUMNS", 8)
    monkeypatch.setattr(step_graphs, "WARM_UPS", 1)
    model, feed = make_model(family), make_feed()
    loop, replays, changed = LatentLoop(model, feed=feed), 0, 0
    for case in range(2):
        rng, questions = random.Random(f"{family}/{case}"), []
        eos = rng.randrange(1, LATENT)
        requests = [replace(draw_request(rng, questions, model, eos), keep_thoughts=True) for _ in range(6)]
        requests += [
            Request(prompt_of([4, 5, 6], 4), 5, at_once=AtOnce(how, LATENT), keep_thoughts=True) for how in AT_ONCE
        ]
        recorder = Recorder() if graphs else None
        engine = ThinkingEngine(loop, [eos], rng.randint(2, 4), 96, capturer=recorder)
        made = run_with_arrivals(engine, requests, rng)
        assert [one.tokens for one in made] == [slow_generate(model, one, eos, 96, feed) for one in requests], case
        changed += [one.tokens for one in made] != [slow_generate(model, one, eos, 96) for one in requests]
        for one, request in zip(made, requests, strict=True):
            if request.prompt.num_thoughts:
                thoughts, fed = slow_thoughts(model, request, feed)
                torch.testing.assert_close(one.fed, fed, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(one.thoughts, thoughts, rtol=1e-4, atol=1e-4)
        replays += recorder.replays if recorder else 0
    assert changed, "the feed makes a difference"
    assert bool(replays) == graphs


def equal(one: Completion, other: Completion) -> bool:
    return (one.tokens, one.log_probabilities) == (other.tokens, other.log_probabilities) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("thoughts", "fed")
    )


@pytest.mark.parametrize("iterations", [None, 3])
def test_what_is_edited_is_what_is_fed(iterations):
    """``edit_thought`` receives and returns input embeddings. Feeding the kept ones again changes no bit. Other ones go
    into the model as they are, and ``thoughts`` stay the states of which the feed makes what is fed."""
    model, feed, prompt = make_model("gpt2"), make_feed(), prompt_of([4, 5, 6], 3)
    loop, vector = LatentLoop(model, feed=feed), torch.linspace(-1, 1, 32)
    at_once = None if iterations is None else AtOnce(Parallel("jacobi", iterations), LATENT)
    plain = Request(prompt, 3, log_probabilities=True, keep_thoughts=True, at_once=at_once)
    before = generate(loop, [plain] * 3, [0])
    torch.testing.assert_close(feed(before[0].thoughts).detach(), before[0].fed, rtol=1e-5, atol=1e-5)
    seen = []
    kept = replace(plain, edit_thought=lambda index, own: seen.append((index, own)) or before[0].fed[index])
    same = replace(plain, edit_thought=lambda index, own: own)
    again, unchanged, untouched = generate(loop, [kept, same, plain], [0])
    for one, expected in zip((again, unchanged, untouched), before, strict=True):
        assert equal(one, expected)
    assert all(torch.equal(own, before[0].fed[index]) for index, own in seen[-3:])
    if iterations is None:
        changed = replace(plain, edit_thought=lambda index, own: vector if index == 1 else own)
        edited = generate(loop, [changed], [0])[0]
        inputs = slow_inputs(model, prompt_of([4, 5, 6], 1, ()), None, feed)
        inputs = torch.cat([inputs, vector.expand(1, 1, -1)], dim=1)
        third = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
        expected = torch.cat([inputs[0, 3:], feed(third)[0]]).detach()
        torch.testing.assert_close(edited.fed, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(edited.thoughts[2], third[0, 0].detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(edited.thoughts[1], before[0].thoughts[1], rtol=1e-4, atol=1e-5)


def test_a_listener_hears_the_states_and_the_head_decides_from_them_when_thinking_ends():
    model, feed, heard = make_model("gpt2"), make_feed(), []
    request = Request(prompt_of([4, 5, 6], 6), 4, keep_thoughts=True)

    class Hears(Ends):
        def on_thought(self, ticket, index, state):
            heard.append(state.clone())

    engine, ends = ThinkingEngine(LatentLoop(model, feed=feed), [0], 2, 96), Hears()
    engine.submit(request, ends)
    engine.run()
    thoughts = slow_thoughts(model, request, feed)[0]
    torch.testing.assert_close(torch.stack(heard), thoughts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends.completions[0].thoughts, thoughts, rtol=1e-4, atol=1e-5)
    heads = F.linear(thoughts, model.lm_head.weight).argmax(-1).tolist()
    end = heads[3]
    made = generate(LatentLoop(model, feed=feed), [replace(request, min_thoughts=0, end_thinking=end)], [0])[0]
    assert made.num_thoughts == heads.index(end)


def test_ranks_call_embedding_and_feed_equally_often_whatever_they_have_to_do():
    """As ZeRO-3 needs it; here one rank has no request at all."""
    calls: list[list[str]] = [[], []]
    loops = [LatentLoop(make_model("llama"), feed=make_feed()) for _ in calls]
    for loop, seen in zip(loops, calls, strict=True):
        loop.feed.register_forward_hook(lambda module, given, made, seen=seen: seen.append("feed"))
        loop.model.base_model.register_forward_hook(lambda module, given, made, seen=seen: seen.append("pass"))
        embedding = loop.model.get_input_embeddings()
        embedding.register_forward_hook(lambda module, given, made, seen=seen: seen.append("embedding"))
    engines = [ThinkingEngine(loop, [0], 2, 96) for loop in loops]
    for count in (0, 2, 3):
        engines[0].submit(Request(prompt_of([count + 1, 3, 4], count), 3))
    for how in (Parallel("jacobi", 3), Parallel("looped", 2)):
        engines[0].submit(Request(prompt_of([4, 5, 6], 4), 3, at_once=AtOnce(how, LATENT)))
    while op := max(engine.due() for engine in engines):
        for engine in engines:
            engine.step(op)
    assert calls[0] == calls[1]
    assert calls[0].count("feed") == calls[0].count("pass") > 10


def test_a_description_of_a_feed_says_what_is_wrong_with_it():
    assert SPEC.fault() is None
    assert FeedSpec("mirror", 4).fault() == "unknown feed 'mirror'; expected one of projection"
    assert FeedSpec("projection", 0).fault() == "feed width 0; expected 1 or more"
