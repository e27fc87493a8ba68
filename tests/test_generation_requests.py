"""What a request may contain: seeds, stop strings, continuations to score, precision; and what is refused."""

from dataclasses import replace

import pytest
import torch
from making_requests import LATENT, Ends, prompt_of
from slow_loop import slow_embeddings
from tiny_models import make_model

from coconut_ds.errors import DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request, Sampling
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.latent_loop import LatentLoop


def test_draws_depend_only_on_seed_sample_and_position(tiny_model):
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


def test_bf16_is_close_to_fp32():
    """Thoughts agree to the precision of bf16, which has eight bits of mantissa."""
    requests = [Request(prompt_of([n, 5, 6, 7], 3), 2, keep_thoughts=True) for n in range(1, 4)]
    exact = generate(LatentLoop(make_model("llama", seed=2)), requests, [0])
    rough = generate(LatentLoop(make_model("llama", seed=2).to(torch.bfloat16)), requests, [0])
    for one, other in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(one.thoughts, other.thoughts, dim=-1).min() > 0.99


def test_in_bf16_on_a_cpu_slots_become_longer_when_a_longer_request_comes():
    """The request that runs meanwhile keeps its keys and values."""
    loop = LatentLoop(make_model("llama", seed=2).to(torch.bfloat16))
    requests = [Request(prompt_of([4, 5, 6, 7], 3), 12), Request(prompt_of([n % 30 + 1 for n in range(60)], 3), 12)]
    requests = [replace(request, min_new_tokens=12, keep_thoughts=True) for request in requests]
    alone = [generate(loop, [request], [0])[0] for request in requests]
    engine, ends = ThinkingEngine(loop, [0], 2, 96), Ends()
    engine.submit(requests[0], ends)
    for _ in range(4):
        engine.step(engine.due())
    before = engine.cache.num_bytes
    engine.submit(requests[1], ends)
    engine.run()
    assert before * 80 == engine.cache.num_bytes * 32
    for one, expected in ((ends.completions[0], alone[0]), (ends.completions[1], alone[1])):
        assert one.tokens == expected.tokens
        torch.testing.assert_close(one.thoughts, expected.thoughts, rtol=0.05, atol=0.05)


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


def test_scores_of_a_row_do_not_depend_on_the_others(tiny_model):
    """Rows that want scores, rows that do not, and rows whose tokens are given share each choice."""
    loop = LatentLoop(tiny_model("gpt2"))
    plain = Request(prompt_of([4, 5, 6], 2), 5, min_new_tokens=5)
    requests = [
        plain,
        replace(plain, log_probabilities=True, num_likeliest=3),
        replace(plain, prompt=prompt_of([9, 8], 1), sampling=Sampling(1.0)),
        replace(plain, continuation=(9, 11, 0, 3, 4)),
        replace(plain, prompt=prompt_of([9, 8], 1), log_probabilities=True, num_likeliest=1),
    ]
    for one, request in zip(generate(loop, requests, [0]), requests, strict=True):
        alone = generate(loop, [request], [0])[0]
        assert (one.tokens, one.is_greedy) == (alone.tokens, alone.is_greedy)
        assert one.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)
        likeliest = [[token for token, _ in score.likeliest] for score in one.scores]
        assert likeliest == [[token for token, _ in score.likeliest] for score in alone.scores]
        assert all(len(each) == request.num_likeliest for each in likeliest)
