"""Log probabilities: keyed by token, with each token's own bytes and place, in the same way streamed and not."""

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_tokenizers import tokenizers

from coconut_ds.data.token_bytes import REPLACEMENT, Utf8Decoder
from coconut_ds.data.tokens import add_markers
from coconut_ds.formats import TEXT
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Score
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from serve.api.completions import _Unsent
from serve.api.logprobs import ScoredText, within
from serve.api.responses import ChatFormat, CompletionFormat
from serve.engine.jobs import Times
from serve.requests.continuations import Choice, Delta
from serve.requests.text import TextStream

KINDS = ("gpt2", "llama", "gemma", "words", "wordpiece")
STOPS = st.lists(st.text(st.sampled_from("the ca.é😀\N{REPLACEMENT CHARACTER}"), min_size=1, max_size=3), max_size=2)


@cache
def prompter_of(kind):
    tokenizer = copy.deepcopy(tokenizers()[kind])
    # A prompter computes nothing with the model.
    model: Any = SimpleNamespace()
    return Prompter(Backbone(model, tokenizer, add_markers(tokenizer)[0]), METHODS["coconut_reversed"], TEXT)


def scores_of(data, known, ids):
    """Made-up scores: each token among likely ones, some of them impossible (-inf), in any order."""
    likeliest = st.lists(st.integers(0, known + 3), max_size=6, unique=True)
    scores = []
    for number, token in enumerate(ids):
        others = [other for other in data.draw(likeliest) if other != token]
        top = [(other, -float(place) - number / 100) for place, other in enumerate([*others[:1], token, *others[1:]])]
        impossible = [(known - 1, float("-inf"))] if known - 1 not in (token, *others) else []
        scores.append(Score(dict(top)[token], False, (*top, *impossible)))
    return scores


def place_of(pieces, number):
    """The slow truth: where the character with the first byte of a piece is, in the text of all bytes up to it."""
    before, first = b"".join(pieces[:number]), pieces[number][:1]
    # An incomplete character, which U+FFFD stands for here, counts once there is a byte that does not continue it.
    return len((before + first).decode(errors="replace")) - 1 if first else len(Utf8Decoder().decode(before))


def streamed(prompter, ids, scores, stop):
    """The chunks of a stream: the text and the scored tokens of each."""
    stream, unsent, chunks = TextStream(prompter.text, stop), _Unsent(prompter), []
    for token, score in zip(ids, scores, strict=True):
        delta = Delta(0, stream.add(token), token, score)
        unsent.take(delta)
        if delta.text:
            chunks.append((delta.text, unsent.scored_with(delta)))
    completion = Completion(ids, "length", scores, 0, None, 0, 0.0)
    last = Delta(0, stream.end(), choice=Choice(0, prompter.cut(ids, stop), "length", completion, 0, Times()))
    return [*chunks, (last.text, unsent.scored_with(last))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_token_has_its_own_key_bytes_and_place(kind, data):
    """For any tokens, also invalid bytes, markers, ids without a token, and texts that are cut at a stop string."""
    prompter = prompter_of(kind)
    known = len(prompter.tokenizer)
    ids = data.draw(st.lists(st.integers(0, known - 1).filter(lambda one: one not in prompter.eos_ids), max_size=15))
    scores, stop = scores_of(data, known, ids), data.draw(STOPS)
    text, named = prompter.cut(ids, stop), ScoredText(prompter)
    scored = within([named.add(token, score) for token, score in zip(ids, scores, strict=True)], len(text))
    completion, chat = CompletionFormat().logprobs(scored), ChatFormat().logprobs(scored)["content"]
    for place, score in enumerate(scores):
        possible = [value for _, value in score.likeliest if value > float("-inf")]
        top = completion["top_logprobs"][place]
        assert sorted(top.values()) == sorted(possible)
        assert top[completion["tokens"][place]] == completion["token_logprobs"][place] == score.log_probability
        assert len({one["token"] for one in chat[place]["top_logprobs"]}) == len(possible)
        own = {key: chat[place][key] for key in ("token", "logprob", "bytes")}
        assert own in chat[place]["top_logprobs"]
        assert REPLACEMENT not in own["token"] or bytes(own["bytes"]).decode() == own["token"]
    pieces = [bytes(one["bytes"] or ()) for one in chat]
    assert b"".join(pieces).decode(errors="replace").startswith(text)
    assert completion["text_offset"] == [min(place_of(pieces, number), len(text)) for number in range(len(pieces))]

    chunks = streamed(prompter, ids, scores, stop)
    assert "".join(piece for piece, _ in chunks) == text
    assert [one for _, tokens in chunks for one in tokens] == scored
    begun = 0
    for piece, tokens in chunks[:-1]:
        assert all(begun <= one.offset < begun + len(piece) for one in tokens)
        begun += len(piece)


def test_the_tokens_of_an_emoji_are_told_apart():
    """As OpenAI names them: ``bytes:`` in completions, the bytes alone in chats; all parts begin at the same place."""
    prompter = prompter_of("llama")
    ids = prompter.tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    named = ScoredText(prompter)
    scored = [named.add(token, Score(-1.0, True, ((token, -1.0),))) for token in ids]
    made = CompletionFormat().logprobs(scored)
    assert made["tokens"] == ["a", r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", "b"]
    assert made["text_offset"] == [0, 1, 1, 1, 1, 2]
    chat = ChatFormat().logprobs(scored)["content"]
    assert [one["token"] for one in chat[1:3]] == [r"\xf0", r"\x9f"]
    assert [one["bytes"] for one in chat[:3]] == [[97], [0xF0], [0x9F]]
