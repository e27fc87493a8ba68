"""Noise in thoughts: what it is a function of, that samples share their question, and what is refused."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import make_backbone, make_card
from slow_loop import slow_generate

from coconut_ds.errors import ConfigError, DataError
from coconut_ds.generation import slot_table
from coconut_ds.generation.prompter import Writing
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings.compose import compose_eval_config, compose_probe_config

QUESTION = " ".join(["1", "2", "3", "+", "="] * 4)
NOISE = ["thought_noise=gaussian", "thought_sigma=3"]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    backbone = make_backbone(seed=5)
    return Reasoner(backbone, make_card(backbone))


def generated(reasoner: Reasoner, **options):
    return reasoner.generate([QUESTION, "1 + 2"], max_new_tokens=6, keep_thoughts=True, **options)


@pytest.mark.parametrize(
    "noise", [{"thought_noise": "gaussian", "thought_sigma": 0}, {"thought_noise": "dropout", "thought_dropout": 0}]
)
def test_samples_without_any_noise_equal_the_greedy_answer(reasoner, noise):
    greedy = generated(reasoner)
    made = generated(reasoner, samples=3, **noise)
    for number, one in enumerate(made):
        assert one.completion.tokens == greedy[number // 3].completion.tokens
        assert torch.allclose(one.thoughts, greedy[number // 3].thoughts, atol=1e-5)


def key_of(reasoner: Reasoner, kind: str, question: str, seed: int, sample: int) -> int:
    """The key of Philox for a sample, from the description of it."""
    ids = " ".join(map(str, reasoner.prompter.encode([question])[0]))
    text = f"{kind}/{seed}/{hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()}/{sample}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


@pytest.mark.parametrize("kind", ["gaussian", "dropout"])
def test_samples_that_share_the_question_equal_a_slow_loop_with_the_same_noise(kind, monkeypatch):
    """Drawn by (seed, question, sample, thought). They share the question, and nothing after it."""
    monkeypatch.setattr(slot_table, "MIN_SHARED", 1)
    backbone = make_backbone("llama", seed=3)
    reasoner = Reasoner(backbone, make_card(backbone))
    noise = {"thought_noise": kind, **({"thought_sigma": 2.0} if kind == "gaussian" else {"thought_dropout": 0.5})}
    made = generated(reasoner, samples=3, n_thoughts=4, seed=9, **noise)
    alone = [one.completion.tokens for one in generated(reasoner, n_thoughts=4, seed=9, **noise)]
    assert alone == [made[0].completion.tokens, made[3].completion.tokens]
    prompter, texts = reasoner.prompter, set()
    for number, one in enumerate(made):
        rng = np.random.Generator(np.random.Philox(key=key_of(reasoner, kind, one.question, 9, number % 3)))
        if kind == "gaussian":
            term = torch.from_numpy(2 * rng.standard_normal((4, reasoner.loop.width), np.float32))
            factor = torch.ones(())
        else:
            term = torch.zeros(4, 1)
            factor = torch.from_numpy(2 * (rng.random(reasoner.loop.width, np.float32) >= 0.5).astype(np.float32))
        own = iter(term)
        ids = prompter.encode([one.question])[0]
        request = prompter.request(ids, reasoner.thoughts(4), Writing(6))
        expected = slow_generate(
            *(backbone.model, request, backbone.tokenizer.eos_token_id),
            feed=lambda states, own=own, factor=factor: states * factor + next(own),
        )
        assert one.completion.tokens == expected
        texts.add(tuple(one.completion.tokens))
        assert one.completion.num_shared <= request.prompt.first_thought
    assert len(texts) > 2
    assert [one.completion.num_shared > 0 for one in made] == [False, True, True] * 2


def test_noise_is_refused_where_it_has_no_effect_or_no_size(reasoner):
    for options, words in (
        ({"thought_noise": "gaussian"}, "thought_noise=gaussian: needs thought_sigma"),
        ({"thought_noise": "dropout", "thought_dropout": 1.0}, "thought_dropout=1.0: expected 0 or more, and less"),
        ({"thought_noise": "gaussian", "thought_sigma": float("nan")}, "thought_sigma=nan: expected 0 to 1000"),
        ({"thought_noise": "gaussian", "thought_sigma": 1e39}, r"thought_sigma=1e\+39: expected 0 to 1000"),
        ({"thought_sigma": 0.5}, "thought_sigma=0.5: is read only with thought_noise=gaussian"),
        ({"thought_noise": "svp"}, "thought_noise=svp: expected one of none, gaussian, dropout"),
    ):
        with pytest.raises(DataError, match=words):
            reasoner.generate("1", **options)
    backbone = make_backbone()
    plain = Reasoner(backbone, replace(make_card(backbone), method="no_cot", stage=0, num_thoughts=0))
    with pytest.raises(DataError, match="thought_noise=gaussian: method=no_cot does not think"):
        plain.generate("1", thought_noise="gaussian", thought_sigma=1)
    for more, words in (
        (["samples=4"], "samples=4: all answers to a problem would be equal; set thought_noise or temperature"),
        (["thought_noise=dropout"], "needs thought_dropout"),
        (["thought_sigma=-1", "thought_noise=gaussian"], "thought_sigma: found -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            compose_eval_config(["checkpoint=C", "data=gsm_eval", *more])
    with pytest.raises(ConfigError, match="effects examines thoughts without noise; only think takes it"):
        compose_probe_config("effects", ["checkpoint=C", "data=gsm_eval", *NOISE])
    with pytest.raises(ConfigError, match="sample=3: without noise all samples are equal"):
        compose_probe_config("think", ["checkpoint=C", "question=1", "sample=3"])
