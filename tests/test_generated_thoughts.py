"""Thoughts during generation: one after the other or all at once, kept, replaced, ended by the model."""

from dataclasses import replace

import pytest
import torch
from making_requests import FAMILIES, LATENT, Ends, prompt_of
from slow_loop import slow_embeddings, slow_generate, slow_inputs

from coconut_ds.errors import DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Request, Thinking
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.latent_loop import LatentLoop


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_at_once(tiny_model, family):
    """Jacobi iteration: one iteration per thought equals sequential thinking, fewer equal the slow Jacobi loop."""
    model = tiny_model(family)
    prompts = [prompt_of([5, 6, 7, 8], 3), prompt_of([9], 0), prompt_of([*range(1, 30)], 6), prompt_of([7] * 40, 1)]
    one_by_one = [slow_generate(model, Request(prompt, 6), 0) for prompt in prompts]
    for iterations in (1, 2, 3, 6, 9):
        requests = [
            Request(prompt, 6, at_once=AtOnce(Parallel("jacobi", iterations), LATENT), keep_thoughts=True)
            for prompt in prompts
        ]
        made = generate(LatentLoop(model), requests, [0], slots=2)
        assert [one.tokens for one in made] == [slow_generate(model, request, 0) for request in requests]
        assert [one.num_thoughts for one in made] == [3, 0, 6, 1]
        if iterations >= 6:
            assert [one.tokens for one in made] == one_by_one
    start = slow_generate(model, Request(prompt_of([4, 9, 4], 0, ()), 7), 0)[1]
    own = Request(prompt_of([4, 9, 4], 0, ()), 7, thinking=Thinking(start, 3, 4))
    at_once = replace(own, at_once=AtOnce(Parallel("jacobi", 4), LATENT))
    assert [one.tokens for one in generate(LatentLoop(model), [at_once, own], [0])] == [
        slow_generate(model, own, 0)
    ] * 2
    with pytest.raises(DataError, match="jacobi makes all thoughts at once"):
        replace(requests[0], min_thoughts=1, end_thinking=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_looped_thoughts_equal_the_slow_loop_token_for_token(tiny_model, family):
    """Prompts with different numbers of thoughts share the slots. Kept inputs are those of the last pass, kept thoughts
    its states before each of them; inputs that are fed again give the same, and another input what the slow loop makes
    of it."""
    model = tiny_model(family)
    loop = LatentLoop(model)
    prompts = [prompt_of([5, 6, 7, 8], 3), prompt_of([9], 0), prompt_of([*range(1, 30)], 6), prompt_of([7] * 40, 1)]
    for how in (Parallel("looped", None, 2), Parallel("looped", 2), Parallel("looped", 5)):
        requests = [Request(one, 6, at_once=AtOnce(how, LATENT), keep_thoughts=True) for one in prompts]
        made = generate(loop, requests, [0], slots=2)
        assert [one.tokens for one in made] == [slow_generate(model, request, 0) for request in requests]
        inputs = slow_inputs(model, prompts[2], how)
        states = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        torch.testing.assert_close(made[2].fed, inputs[0, 29:35].detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made[2].thoughts, states[0, 28:34].detach(), rtol=1e-4, atol=1e-4)
    plain = replace(requests[0], log_probabilities=True)
    again = replace(plain, edit_thought=lambda index, own: made[0].fed[index])
    changed = replace(plain, edit_thought=lambda index, own: torch.ones(32) if index == 1 else own)
    own, same, other = generate(loop, [plain, again, changed], [0])
    assert torch.equal(own.fed, same.fed)
    assert (own.tokens, own.log_probabilities) == (same.tokens, same.log_probabilities)
    assert torch.equal(other.fed[1], torch.ones(32))
    assert not torch.equal(other.fed[2], own.fed[2])
    torch.testing.assert_close(other.fed[0], own.fed[0])
    with pytest.raises(DataError, match="looped makes all thoughts at once"):
        replace(plain, min_thoughts=1, end_thinking=2)


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
    """Against the slow loop with the vector inserted. A hook that changes nothing, or another row, changes no bit."""
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
    # All at once, one pass per thought gives the same; with a single pass each thought gets its first guess.
    often, once = (replace(changed, at_once=AtOnce(Parallel("jacobi", count), LATENT)) for count in (3, 1))
    often, once = generate(LatentLoop(model), [often, once], [0])
    torch.testing.assert_close(often.thoughts, edited.thoughts, rtol=1e-4, atol=1e-5)
    assert often.tokens == edited.tokens
    guess = model.get_input_embeddings().weight[LATENT].detach()
    torch.testing.assert_close(once.thoughts, torch.stack([edited.thoughts[0], vector, guess]), rtol=1e-4, atol=1e-5)


def test_a_model_may_end_thinking_by_itself(tiny_model):
    """Thinking ends at the first thought, from ``min_thoughts`` on, after which the end marker is the likeliest."""
    model = tiny_model("gpt2")
    prompt = prompt_of([4, 5, 6], 6)
    with torch.no_grad():
        heads = model.lm_head(slow_embeddings(model, prompt)[0, 3:9]).argmax(-1).tolist()
    end = heads[3]
    for least in (0, 2, 4, 5):
        # The state that would be thought t + 1 decides whether the end marker follows thought t.
        count = next((t for t in range(least, 6) if heads[t] == end), 6)
        made = generate(LatentLoop(model), [Request(prompt, 4, min_thoughts=least, end_thinking=end)], [0])[0]
        assert made.num_thoughts == count
        assert made.tokens == slow_generate(model, Request(prompt_of([4, 5, 6], count), 4), 0)
