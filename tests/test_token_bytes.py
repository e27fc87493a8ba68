"""The bytes of tokens: joined they are the text, for every kind of tokenizer; a text never ends within a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_tokenizers import tokenizers

from coconut_ds.data.token_bytes import REPLACEMENT, TokenBytes, Utf8Decoder, is_text, text_of, token_name
from coconut_ds.errors import DataError
from coconut_ds.generation.decoding import token_id, token_names

KINDS = ("gpt2", "llama", "gemma", "words", "wordpiece", "metaspace")
BYTE_KINDS = KINDS[:3]
EMOJI = "a😀é 日本👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 ‼️ñ𝔘🥥💭\N{REPLACEMENT CHARACTER}"
TEXTS = st.text(
    st.one_of(st.sampled_from([*EMOJI, *"the cat.\n"]), st.characters(exclude_categories=["Cs"])), max_size=30
)

# Of 64 characters in a row, only the last bytes differ.
CHARACTERS = [chr(code).encode() for code in range(0x80, 0x110000, 64) if not 0xD800 <= code < 0xE000]
INCOMPLETE = {character[:count] for character in CHARACTERS for count in range(1, len(character))}


@pytest.mark.parametrize("kind", BYTE_KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(kind, text):
    """Checked against the text itself, whichever tokens it becomes; and each beginning has the text of its bytes."""
    tokenizer = tokenizers()[kind]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = TokenBytes(tokenizer).of(ids)
    assert b"".join(pieces) == text.encode()
    assert text_of(tokenizer, ids) == text
    for count in range(len(ids)):
        assert text_of(tokenizer, ids[:count]) == b"".join(pieces[:count]).decode(errors="ignore")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_have_the_text_that_the_tokenizer_gives_them(kind, data):
    """Also invalid bytes; only an incomplete character at the end is left out. Texts of more tokens begin the same."""
    tokenizer = tokenizers()[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    pieces, text = TokenBytes(tokenizer).of(ids), text_of(tokenizer, ids)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    cut = (text, text + REPLACEMENT)
    assert b"".join(pieces).decode(errors="replace") in cut
    if kind not in ("llama", "gemma"):  # their own text of invalid bytes also loses the characters around them
        assert whole in cut
    elif REPLACEMENT not in whole:
        assert whole == text
    for count in range(len(ids)):
        assert text.startswith(text_of(tokenizer, ids[:count]))
        assert TokenBytes(tokenizer).of(ids[count:], before=ids[:count]) == pieces[count:]


@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_a_part_of_a_character_has_a_name_of_its_own_that_finds_it(kind):
    tokenizer = tokenizers()[kind]
    parts = [i for i, piece in enumerate(TokenBytes(tokenizer).of(range(len(tokenizer)))) if not is_text(piece)]
    names = token_names(tokenizer, set(parts))
    assert len(parts) >= 128
    assert len(set(names.values())) == len(parts)
    assert not any(REPLACEMENT in name for name in names.values())
    assert [token_id(tokenizer, names[token]) for token in parts] == parts
    assert token_name(b" \xf0\x9f") == r" \xf0\x9f"


@given(st.lists(st.binary(max_size=4), max_size=4))
def test_bytes_in_pieces_have_the_text_of_all_bytes(pieces):
    """Checked with the codec that gets everything at once; only what further bytes can complete is held back."""
    decoder = Utf8Decoder()
    text, joined = "".join(decoder.decode(piece) for piece in pieces), b"".join(pieces)
    assert decoder.pending == next((joined[-count:] for count in (3, 2, 1) if joined[-count:] in INCOMPLETE), b"")
    assert text == joined[: len(joined) - len(decoder.pending)].decode(errors="replace")


def test_a_token_that_is_several_is_refused_with_names_that_are_accepted():
    with pytest.raises(DataError, match=r"'\\xf0', '\\x9f'"):
        token_id(tokenizers()["llama"], "😀\N{COMBINING ACUTE ACCENT}")
