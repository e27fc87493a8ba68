"""What a tokenizer does to text: encodes it, adds tokens around it, or, if it was not loaded properly, loses it."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

NUM_PROBES = 64
"""Number of tokens whose texts show whether a tokenizer can read its own vocabulary."""
MOST_LOST = 0.25
"""Largest share of these texts that may become nothing or unknown tokens: some tokens stand only for parts of words."""
VARIED = "It's 12,345 + 6.7 = <<é>>\n\n  Tom isn't  a\tbompus."
"""A text on which tokenizers that share a vocabulary differ: digits, case, accents, apostrophes and spaces."""


class AddedAround(NamedTuple):
    """Token ids that a tokenizer adds to every text (``add_special_tokens=True``)."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """The token ids of each text; names of special tokens in a text are ordinary text.

    Args:
        tokenizer: used, but not modified.
        texts: any number of texts.
        special: whether the tokenizer adds the tokens of ``added_around``.
    """
    # Steps and answers repeat often, so each distinct text is encoded only once.
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    encoded = tokenizer(
        distinct, add_special_tokens=special, return_attention_mask=False, verbose=False, split_special_tokens=True
    )["input_ids"]
    ids = dict(zip(distinct, encoded, strict=True))
    return [list(ids[text]) for text in texts]


def added_around(tokenizer: PreTrainedTokenizerBase) -> AddedAround:
    """The tokens that the tokenizer adds before and after every text."""
    if not tokenizer.num_special_tokens_to_add(pair=False):
        return AddedAround((), ())
    named = set(tokenizer.all_special_ids)
    for text in ("a", "1", *own_texts(tokenizer)):
        (plain,), (whole,) = encode(tokenizer, [text]), encode(tokenizer, [text], special=True)
        places = [start for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
        # A text that becomes special tokens itself cannot be told from those that are added.
        if plain and places and not named & set(plain):
            return AddedAround(tuple(whole[: places[0]]), tuple(whole[places[0] + len(plain) :]))
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
    they were not written for.
    """
    texts = own_texts(tokenizer)
    if not texts:
        return f"is empty: all of its {len(tokenizer)} tokens are special ones"
    unknown = tokenizer.unk_token_id
    lost = [
        text
        for text, ids in zip(texts, encode(tokenizer, texts), strict=True)
        if all(token == unknown for token in ids)
    ]
    if len(lost) <= MOST_LOST * len(texts):
        return None
    return (
        f"turns {len(lost)} of {len(texts)} texts of its own vocabulary into no or unknown tokens, such as {lost[0]!r} "
        f"({type(tokenizer).__name__}, {len(tokenizer):,} tokens)"
    )


def unknown_share(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Sequence[int]]) -> float:
    """Share of unknown tokens among the token ids of texts; 0 if the tokenizer has no token for this alone."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return 0.0
    return sum(list(ids).count(unknown) for ids in encoded) / max(1, sum(map(len, encoded)))


def encoding_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """A difference between what two tokenizers do to texts; None if none was found."""
    if len(one) != len(other):
        return f"{len(other):,} tokens instead of {len(one):,}"
    if one.eos_token_id != other.eos_token_id:
        return f"end-of-sequence token {other.eos_token_id} instead of {one.eos_token_id}"
    texts = own_texts(one)
    texts += [VARIED, " ".join(texts[:16]), "\n".join(texts[16:32])]
    for special in (False, True):
        for text, first, second in zip(texts, encode(one, texts, special), encode(other, texts, special), strict=True):
            if first != second:
                return f"{text!r} becomes {second[:8]} instead of {first[:8]}"
            if one.decode(first) != other.decode(second):
                return f"the tokens {first[:8]} become {other.decode(second)!r} instead of {one.decode(first)!r}"
    return None
