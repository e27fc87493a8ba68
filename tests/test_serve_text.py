"""Streamed text: whole characters, no stop string, and together the text of all tokens."""

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making_tokenizers import tokenizers
from serving import byte_tokenizer

from coconut_ds.data.tokens import MARKERS, add_markers, build_word_tokenizer, decode
from serve.requests import text as text_module
from serve.requests.text import TextStream, first_place

BYTES = byte_tokenizer()
WORDS = build_word_tokenizer(["the cat sat. on the mat, 1 + 2 = 3"])
ALL = {
    "bytes": BYTES,
    "words": WORDS,
    **{name: copy.deepcopy(tokenizers()[name]) for name in ("gpt2", "llama", "gemma")},
}
KNOWN = {name: (tokenizer, add_markers(tokenizer)[0]) for name, tokenizer in ALL.items()}


def decoder(name):
    tokenizer, markers = KNOWN[name]
    return lambda ids: decode(tokenizer, ids, markers, [tokenizer.eos_token_id])


def pieces_of(name, ids, stop=()):
    stream = TextStream(decoder(name), stop)
    return [*(stream.add(token) for token in ids), stream.end()]


def cut(text, stop):
    place = first_place(text, stop)
    return text if place is None else text[:place]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.integers(8, 300))
@example("0¦0", ["¦", "0¦0"], 8)
def test_no_piece_holds_half_a_character_or_a_stop_string(text, stop, window):
    """For any text and stop strings: pieces hold whole characters, and together the text up to the first stop."""
    ids = BYTES(text, split_special_tokens=True)["input_ids"]
    before, text_module.WINDOW = text_module.WINDOW, window
    try:
        pieces = pieces_of("bytes", ids, stop)
    finally:
        text_module.WINDOW = before
    assert "".join(pieces) == cut(decoder("bytes")(ids), stop)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(ALL)), st.data())
def test_any_tokens_stream_as_their_text(name, data):
    """Bytes that are not valid text, with markers and end-of-sequence tokens, longer than the window."""
    tokenizer, _ = KNOWN[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=60))
    stop = data.draw(st.lists(st.text(min_size=1, max_size=3), max_size=2))
    before, text_module.WINDOW = text_module.WINDOW, 12
    try:
        pieces = pieces_of(name, ids, stop)
    finally:
        text_module.WINDOW = before
    assert "".join(pieces) == cut(decoder(name)(ids), stop)
    assert not any(marker in "".join(pieces) for marker in MARKERS)


@pytest.mark.parametrize(("text", "ready"), [("é", [0, 1]), ("€", [0, 0, 1]), ("😀", [0, 0, 0, 1]), ("ab", [1, 1])])
def test_characters_come_when_their_last_byte_is_there(text, ready):
    ids = BYTES(text)["input_ids"]
    assert [len(piece) for piece in pieces_of("bytes", ids)[:-1]] == ready


def test_what_may_become_a_stop_string_waits():
    ids = BYTES("a##b###c")["input_ids"]
    assert pieces_of("bytes", ids, ["###"]) == ["a", "", "", "##b", "", "", "", "", ""]
    assert pieces_of("bytes", ids[:3], ["###"]) == ["a", "", "", "##"]


@pytest.mark.parametrize("name", ["bytes", "gpt2", "llama"])
def test_a_text_that_is_cut_within_a_character_does_not_show_it(name):
    """Whether it is cut by the number of tokens or by a stop string whose last token begins the next character."""
    ids = KNOWN[name][0]("é👩\u200d👧b", add_special_tokens=False)["input_ids"]
    for count in range(len(ids)):
        text = decoder(name)(ids[:count])
        assert "é👩\u200d👧b".startswith(text)
        assert "".join(pieces_of(name, ids[:count])) == text
        assert "".join(pieces_of(name, ids[:count], ["👩"])) == text.partition("👩")[0]
