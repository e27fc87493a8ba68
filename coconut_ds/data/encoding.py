"""What a tokenizer does to text: encodes it, adds tokens around it, or, if it was not loaded properly, loses it.

Whether names of special tokens in a text become these tokens is a setting of the whole tokenizer, which transformers
changes during a call. Threads that share a tokenizer would then encode each other's texts with the wrong setting. The
functions here therefore do not call a tokenizer of the ``tokenizers`` library: they encode with copies of it, one for
each value of the setting, which are made once and never change.
"""

import threading
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from coconut_ds.errors import DataError

NUM_PROBES = 64
"""Number of tokens whose texts show whether a tokenizer can read its own vocabulary."""
MOST_LOST = 0.25
"""Largest share of these texts that may become nothing or unknown tokens: some tokens stand only for parts of words."""
MOST_SHOWN = 8
"""Largest number of unknown words that a message names."""
VARIED = "It's 12,345 + 6.7 = <<é>>\n\n  Tom isn't  a\tbompus."
"""A text on which tokenizers that share a vocabulary differ: digits, case, accents, apostrophes and spaces."""


class AddedAround(NamedTuple):
    """Token ids that a tokenizer adds to every text (``add_special_tokens=True``)."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    special: bool = False,
    names_are_tokens: bool = False,
    alone: bool = False,
) -> list[list[int]]:
    """The token ids of each text. Any number of threads may encode with one tokenizer at the same time.

    Args:
        tokenizer: not modified, unless ``alone``.
        texts: any number of texts.
        special: whether the tokenizer adds the tokens of ``added_around``.
        names_are_tokens: whether the name of a special token in a text becomes that token, as rendered chat templates
            need it; otherwise it is ordinary text.
        alone: whether only the caller uses the tokenizer, as after it was read. It is then used itself: a copy of a
            vocabulary of 50,000 tokens takes 0.1 s.
    """
    # Steps and answers repeat often, so each distinct text is encoded only once.
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    if not tokenizer.is_fast:
        # Written in Python: the setting is an argument, not a state.
        options = {"return_attention_mask": False, "verbose": False, "split_special_tokens": not names_are_tokens}
        encoded = tokenizer(distinct, add_special_tokens=special, **options)["input_ids"]
    else:
        backend = tokenizer.backend_tokenizer if alone else _copy(tokenizer, names_are_tokens)
        if alone:
            _set_up(backend, names_are_tokens)
        encoded = [one.ids for one in backend.encode_batch_fast(distinct, add_special_tokens=special)]
    ids = dict(zip(distinct, encoded, strict=True))
    return [list(ids[text]) for text in texts]


class Place(NamedTuple):
    """The part of a text that a token stands for: from ``start`` up to ``end``, in characters."""

    start: int
    end: int


def places(
    tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True, names_are_tokens: bool = False
) -> list[Place]:
    """The place in a text of each of the tokens that ``encode`` makes of it.

    Raises:
        DataError: the tokenizer does not know the places.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer {type(tokenizer).__name__} does not tell the places of its tokens in a text; use one that "
            "has a tokenizer.json"
        )
    encoding = _copy(tokenizer, names_are_tokens).encode(text, add_special_tokens=special)
    return [Place(*one) for one in encoding.offsets]


_COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[bool, tuple[Any, Tokenizer]]] = WeakKeyDictionary()
"""By tokenizer and ``names_are_tokens``: what the tokenizer was when it was copied, and the copy."""
_COPYING = threading.Lock()


def _copy(tokenizer: PreTrainedTokenizerBase, names_are_tokens: bool) -> Tokenizer:
    """The copy of a tokenizer that ``encode`` uses. It is made again if the tokenizer has changed since."""
    known, now = _COPIES.get(tokenizer, {}).get(names_are_tokens), _state(tokenizer)
    if known is not None and known[0] == now:
        return known[1]
    with _COPYING:
        copies = _COPIES.setdefault(tokenizer, {})
        known = copies.get(names_are_tokens)
        if known is None or known[0] != now:
            copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            _set_up(copy, names_are_tokens)
            known = copies[names_are_tokens] = (now, copy)
        return known[1]


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What changes if tokens are added to a tokenizer, or if one of its parts is replaced. Takes 2 microseconds."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return id(backend), len(tokenizer), *(None if part is None else part.__getstate__() for part in parts)


def _set_up(backend: Tokenizer, names_are_tokens: bool) -> None:
    """Sets what a call of transformers would set, and turns off the cache of words.

    Each thread that encodes keeps the words of every tokenizer that it has ever used, also of those that no longer
    exist: a server that loads one checkpoint after another would grow by 15 KB per tokenizer and 64 words, without
    bound. Encoding without the cache takes 1.3 to 1.5 times as long (GPT-2, 0.8 million tokens per second and core).
    """
    backend.encode_special_tokens = not names_are_tokens
    backend.no_truncation()
    backend.no_padding()
    resize = getattr(backend.model, "_resize_cache", None)
    if resize is not None:  # BPE and Unigram: the others have no cache.
        resize(0)


def added_around(tokenizer: PreTrainedTokenizerBase) -> AddedAround:
    """The tokens that the tokenizer adds before and after every text."""
    if not tokenizer.num_special_tokens_to_add(pair=False):
        return AddedAround((), ())
    named = set(tokenizer.all_special_ids)
    for text in ("a", "1", *own_texts(tokenizer)):
        (plain,), (whole,) = encode(tokenizer, [text]), encode(tokenizer, [text], special=True)
        starts = [start for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
        # A text that becomes special tokens itself cannot be told from those that are added.
        if plain and starts and not named & set(plain):
            return AddedAround(tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(plain) :]))
    return AddedAround((), ())


def describe_added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Sentences for the user about the tokens that the tokenizer adds to questions; empty if there are none."""
    before, after = added_around(tokenizer)
    notes = [f"the tokenizer adds {token_names(tokenizer, before)} before each question"] if before else []
    if after:
        notes.append(
            f"the tokenizer would add {token_names(tokenizer, after)} after each question, where thoughts or text "
            "follow; it is left out, in training and at inference"
        )
    return notes


def token_names(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Tokens by name, for a message."""
    return ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in ids)


def own_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of up to ``NUM_PROBES`` tokens of the vocabulary, spread over it; special tokens are left out."""
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    texts = (str(tokenizer.decode([index])) for index in islice(ids, 0, None, max(1, len(ids) // NUM_PROBES)))
    # The texts of tokens that are parts of a character contain replacement characters.
    return [text for text in texts if text.strip() and "\N{REPLACEMENT CHARACTER}" not in text]


def encoding_fault(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why the tokenizer is useless: it turns texts of its own vocabulary into nothing or unknown tokens; else None.

    This is what transformers returns for a folder without the tokenizer's files, or if it reads them with a class that
    they were not written for. Only the caller may use the tokenizer: see ``alone`` of ``encode``.
    """
    texts = own_texts(tokenizer)
    if not texts:
        return f"is empty: all of its {len(tokenizer)} tokens are special ones"
    unknown = tokenizer.unk_token_id
    lost = [
        text
        for text, ids in zip(texts, encode(tokenizer, texts, alone=True), strict=True)
        if all(token == unknown for token in ids)
    ]
    if len(lost) <= MOST_LOST * len(texts):
        return None
    return (
        f"turns {len(lost)} of {len(texts)} texts of its own vocabulary into no or unknown tokens, such as {lost[0]!r} "
        f"({type(tokenizer).__name__}, {len(tokenizer):,} tokens)"
    )


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that stands for everything the tokenizer does not know; None if it has none for this alone."""
    unknown = tokenizer.unk_token_id
    return None if unknown == tokenizer.eos_token_id else unknown


def unknown_share(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Sequence[int]]) -> float:
    """Share of unknown tokens among the token ids of texts; 0 if the tokenizer has no token for this alone."""
    unknown = unknown_token(tokenizer)
    if unknown is None:
        return 0.0
    return sum(list(ids).count(unknown) for ids in encoded) / max(1, sum(map(len, encoded)))


def unknown_places(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Place]:
    """The places in a text of the tokens that the tokenizer does not know.

    Empty if the tokenizer knows all, has no token for what it does not know, or does not tell the places of its tokens.
    """
    unknown = unknown_token(tokenizer)
    if unknown is None or not tokenizer.is_fast:
        return []
    encoded = _copy(tokenizer, names_are_tokens=False).encode(text)
    pairs = zip(encoded.ids, encoded.offsets, strict=True)
    return [Place(*place) for token, place in pairs if token == unknown]


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """The parts of texts that the tokenizer does not know, each once, in the order in which they occur."""
    found = (text[place.start : place.end] for text in texts for place in unknown_places(tokenizer, text))
    return list(dict.fromkeys(found))


def unknown_note(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """A sentence about the words of texts that the tokenizer does not know; None if it knows all."""
    words = unknown_words(tokenizer, texts)
    if not words:
        return None
    shown = ", ".join(map(repr, words[:MOST_SHOWN]))
    more = f" and {len(words) - MOST_SHOWN} more" if len(words) > MOST_SHOWN else ""
    return f"the model's tokenizer does not know {shown}{more}; it reads each of them as {tokenizer.unk_token}"


def encoding_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """A difference between what two tokenizers do to texts; None if none was found.

    Only the caller may use ``other``: see ``alone`` of ``encode``.
    """
    if len(one) != len(other):
        return f"{len(other):,} tokens instead of {len(one):,}"
    if one.eos_token_id != other.eos_token_id:
        return f"end-of-sequence token {other.eos_token_id} instead of {one.eos_token_id}"
    texts = own_texts(one)
    texts += [VARIED, " ".join(texts[:16]), "\n".join(texts[16:32])]
    for special in (False, True):
        firsts, seconds = encode(one, texts, special), encode(other, texts, special, alone=True)
        for text, first, second in zip(texts, firsts, seconds, strict=True):
            if first != second:
                return f"{text!r} becomes {second[:8]} instead of {first[:8]}"
            if one.decode(first) != other.decode(second):
                return f"the tokens {first[:8]} become {other.decode(second)!r} instead of {one.decode(first)!r}"
    return None
