"""Batched, cached, continuous generation equals the slow one, token for token; and what else a request may ask for."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, make_model
from slow_loop import slow_embeddings, slow_generate
from transformers import AutoConfig, AutoModelForCausalLM

from coconut_ds.errors import DataError, ModelError
from coconut_ds.generation import thinking_engine
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Jacobi, Request, Sampling, Thinking
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
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


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_at_once(tiny_model, family):
    """Jacobi: as many iterations as thoughts are sequential thinking, fewer what the slow one makes of them."""
    model = tiny_model(family)
    prompts = [prompt_of([5, 6, 7, 8], 3), prompt_of([9], 0), prompt_of([*range(1, 30)], 6), prompt_of([7] * 40, 1)]
    one_by_one = [slow_generate(model, Request(prompt, 6), 0) for prompt in prompts]
    for iterations in (1, 2, 3, 6, 9):
        requests = [Request(prompt, 6, jacobi=Jacobi(iterations, LATENT), keep_thoughts=True) for prompt in prompts]
        made = generate(LatentLoop(model), requests, [0], slots=2)
        assert [one.tokens for one in made] == [slow_generate(model, request, 0) for request in requests]
        assert [one.num_thoughts for one in made] == [3, 0, 6, 1]
        if iterations >= 6:
            assert [one.tokens for one in made] == one_by_one
    start = slow_generate(model, Request(prompt_of([4, 9, 4], 0, ()), 7), 0)[1]
    own = Request(prompt_of([4, 9, 4], 0, ()), 7, thinking=Thinking(start, 3, 4))
    at_once = replace(own, jacobi=Jacobi(4, LATENT))
    assert [one.tokens for one in generate(LatentLoop(model), [at_once, own], [0])] == [
        slow_generate(model, own, 0)
    ] * 2
    with pytest.raises(DataError, match="jacobi makes all thoughts at once"):
        replace(requests[0], min_thoughts=1, end_thinking=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_the_slow_one(tiny_model, family):
    """The same on a few requests: with and without thoughts, one that thinks by itself, one at the context's end."""
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


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_are_those_that_were_fed_back(tiny_model, family):
    model, heard = tiny_model(family), []
    prompt = prompt_of([4, 5, 6], 3)

    class Hears(Ends):
        def on_thought(self, ticket, index, state):
            heard.append((ticket, index, state.clone()))

        def on_token(self, ticket, token, score):
            heard.append((ticket, token))

    engine, ends = ThinkingEngine(LatentLoop(model), [0], 2, 96), Hears()
    engine.submit(Request(prompt, 2, min_new_tokens=2, keep_thoughts=True), ends)
    engine.run()
    expected = slow_embeddings(model, prompt)[0, 3:6]
    torch.testing.assert_close(ends.completions[0].thoughts, expected, rtol=1e-4, atol=1e-5)
    assert [one[:2] for one in heard[:3]] == [(0, 0), (0, 1), (0, 2)]
    torch.testing.assert_close(torch.stack([one[2] for one in heard[:3]]), expected, rtol=1e-4, atol=1e-5)
    assert heard[3:] == [(0, token) for token in ends.completions[0].tokens]


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_can_be_replaced_and_later_ones_follow(tiny_model, family):
    """Against the slow loop with the vector put in. A hook that changes nothing, and one beside, change no bit."""
    model, prompt = tiny_model(family), prompt_of([4, 5, 6], 3)
    plain = Request(prompt, 3, log_probabilities=True, keep_thoughts=True)
    vector = torch.linspace(-1, 1, 32)
    same = replace(plain, edit_thought=lambda index, state: state)
    changed = replace(plain, edit_thought=lambda index, state: vector if index == 1 else state)
    before = generate(LatentLoop(model), [plain, plain, plain], [0])
    left, edited, untouched = generate(LatentLoop(model), [same, changed, plain], [0])
    for one, expected in ((left, before[0]), (untouched, before[2])):
        assert (one.tokens, one.log_probabilities) == (expected.tokens, expected.log_probabilities)
        assert torch.equal(one.thoughts, expected.thoughts)
    embeds = slow_embeddings(model, prompt_of([4, 5, 6], 1, ()))
    embeds = torch.cat([embeds, vector.expand(1, 1, -1)], dim=1)
    third = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1:]
    expected = torch.cat([embeds[0, 3:], third[0]])
    torch.testing.assert_close(edited.thoughts, expected, rtol=1e-4, atol=1e-5)
    after = torch.cat([embeds, third, model.get_input_embeddings()(torch.tensor([[2]]))], dim=1)
    logits = model(inputs_embeds=after, use_cache=False).logits[0, -1].detach()
    assert edited.tokens[0] == int(logits.argmax())
    assert edited.log_probabilities[0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)
    # All at once, with as many passes as thoughts, it is the same; with one pass each is given its first guess.
    often, once = (replace(changed, jacobi=Jacobi(count, LATENT)) for count in (3, 1))
    often, once = generate(LatentLoop(model), [often, once], [0])
    torch.testing.assert_close(often.thoughts, edited.thoughts, rtol=1e-4, atol=1e-5)
    assert often.tokens == edited.tokens
    guess = model.get_input_embeddings().weight[LATENT].detach()
    torch.testing.assert_close(once.thoughts, torch.stack([edited.thoughts[0], vector, guess]), rtol=1e-4, atol=1e-5)


def test_equal_beginnings_are_encoded_once(tiny_model):
    """Samples of a prompt, several numbers of thoughts, a long introduction: the passes hold each position once."""
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


def test_draws_depend_on_seed_sample_and_place_alone(tiny_model):
    loop = LatentLoop(tiny_model("gpt2"))
    warm = Request(prompt_of([4, 5], 1), 12, min_new_tokens=12, sampling=Sampling(1.5, seed=3))
    alone = [generate(loop, [one], [0])[0].tokens for one in warm.samples(4)]
    crowd = [Request(prompt_of([n, 7], 2), 5, sampling=Sampling(0.7, seed=n)) for n in range(1, 6)]
    together = generate(loop, [*crowd, *warm.samples(4), *crowd], [0], slots=3)
    assert [one.tokens for one in together[5:9]] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4
    assert generate(loop, [replace(warm, sampling=Sampling(1.5, seed=4))], [0])[0].tokens != alone[0]
    cold = replace(warm, sampling=Sampling(1.5, top_k=1))
    greedy = replace(warm, sampling=Sampling())
    assert generate(loop, [cold], [0])[0].tokens == generate(loop, [greedy], [0])[0].tokens


def test_stop_strings_end_a_text_where_they_are_complete(tiny_model):
    def decode(ids):
        return "".join(f"{token}," for token in ids)

    loop = LatentLoop(tiny_model("gpt2"))
    free = generate(loop, [Request(prompt_of([4, 5], 2), 12, min_new_tokens=12)], [0])[0]
    stop = decode(free.tokens[3:5])
    stopped = Request(prompt_of([4, 5], 2), 12, stop=("nothing", stop))
    made = generate(loop, [stopped], [0], decode=decode)[0]
    assert (made.tokens, made.finish_reason) == (free.tokens[:5], "stop")
    later = generate(loop, [replace(stopped, min_new_tokens=7)], [0], decode=decode)[0]
    assert len(later.tokens) >= 7
    with pytest.raises(DataError, match=r"stop=\['nothing', .*made without decode"):
        generate(loop, [stopped], [0])


def test_a_continuation_is_scored(tiny_model):
    model = tiny_model("llama")
    prompt, given = prompt_of([4, 5, 6], 2), (9, 11, 0, 3)
    made = generate(LatentLoop(model), [Request(prompt, 1, continuation=given)], [0])[0]
    embeds = slow_embeddings(model, prompt)
    embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([given]))], dim=1)
    logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -5:-1]
    expected = logits.log_softmax(-1)[range(4), given]
    torch.testing.assert_close(torch.tensor(made.log_probabilities), expected, rtol=1e-4, atol=1e-5)
    assert made.is_greedy == [int(row.argmax()) == token for row, token in zip(logits, given, strict=True)]
    assert (made.tokens, made.finish_reason) == (list(given), "continuation")
    chosen = generate(LatentLoop(model), [Request(prompt, 3, log_probabilities=True)], [0])[0]
    again = generate(LatentLoop(model), [Request(prompt, 1, continuation=tuple(chosen.tokens))], [0])[0]
    assert again.is_greedy == [True] * len(chosen.tokens)
    assert again.log_probabilities == pytest.approx(chosen.log_probabilities, abs=1e-4)


def test_a_model_may_end_thinking_by_itself(tiny_model):
    """Thinking ends at the first thought, from the least number on, after which the end marker is the likeliest."""
    model = tiny_model("gpt2")
    prompt = prompt_of([4, 5, 6], 6)
    with torch.no_grad():
        heads = model.lm_head(slow_embeddings(model, prompt)[0, 3:9]).argmax(-1).tolist()
    end = heads[3]
    for least in (0, 2, 4, 5):
        # After thought t the marker would be written if the state that thought t + 1 would be says so.
        count = next((t for t in range(least, 6) if heads[t] == end), 6)
        made = generate(LatentLoop(model), [Request(prompt, 4, min_thoughts=least, end_thinking=end)], [0])[0]
        assert made.num_thoughts == count
        assert made.tokens == slow_generate(model, Request(prompt_of([4, 5, 6], count), 4), 0)


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
    """What ZeRO-3 needs: the same modules are called as often on each rank, one of them without any request."""
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


def test_the_cache_takes_what_its_shape_says_and_the_model_is_left_as_it_was(tiny_model):
    model = tiny_model("llama")
    engine = ThinkingEngine(LatentLoop(model), [0], 3, 50)
    engine.submit(Request(prompt_of([4, 5], 2), 4))
    assert engine.cache.num_bytes == 0
    engine.run()
    assert engine.cache.num_bytes == 2 * 2 * 3 * 2 * 50 * 8 * 4
    assert model.config._attn_implementation == "sdpa"


def test_bf16_is_close_to_fp32():
    """The states of thoughts agree as well as eight bits of mantissa let them."""
    requests = [Request(prompt_of([n, 5, 6, 7], 3), 2, keep_thoughts=True) for n in range(1, 4)]
    exact = generate(LatentLoop(make_model("llama", seed=2)), requests, [0])
    rough = generate(LatentLoop(make_model("llama", seed=2).to(torch.bfloat16)), requests, [0])
    for one, other in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(one.thoughts, other.thoughts, dim=-1).min() > 0.99


def test_requests_that_make_no_sense_are_refused(tiny_model):
    prompt = prompt_of([4], 1)
    loop = LatentLoop(tiny_model("gpt2"))
    with pytest.raises(DataError, match="max_new_tokens=0"):
        Request(prompt, 0)
    with pytest.raises(DataError, match="no token before the first thought"):
        Request(Layout([LATENT, 2], [IGNORE] * 2, 0, 1), 1)
    with pytest.raises(DataError, match="min_thoughts=1: needs end_thinking"):
        Request(prompt, 1, min_thoughts=1)
    with pytest.raises(DataError, match="temperature=-1"):
        Sampling(-1.0)
    with pytest.raises(DataError, match="top_p=0"):
        Sampling(1.0, top_p=0.0)
    with pytest.raises(DataError, match="top_k=0"):
        Sampling(1.0, top_k=0)
    with pytest.raises(DataError, match=r"problem 1: its prompt has 97 positions.*context is 96"):
        generate(loop, [Request(prompt, 1), Request(prompt_of([4] * 95, 1), 1)], [0])
    with pytest.raises(DataError, match="prompt: has 12 positions, thoughts included; there is room for 12"):
        ThinkingEngine(loop, [0], 1, 12).submit(Request(prompt_of([4] * 10, 1), 1))


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
