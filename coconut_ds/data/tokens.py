"""Text to token ids and back: loading or building a tokenizer, adding the thought markers, tokenizing problems.

The format of the data (``coconut_ds.formats``) says how a problem is written. In the text format, which is that of the
reference implementation, the parts are ``question + "\\n"`` with the tokenizer's special tokens, each ``step + "\\n"``,
and ``"### " + answer`` followed by the end-of-sequence token. Each marker is one token; markers are inserted and
removed by id, so text that happens to spell a marker is not taken for one.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coconut_ds.data.chat import chat_places, chat_template_of, encode_chat
from coconut_ds.data.encoding import Place, added_around, encode, encoding_fault, places
from coconut_ds.data.problem import Problem
from coconut_ds.data.token_bytes import text_of
from coconut_ds.data.tokenizer_files import read_tokenizer
from coconut_ds.errors import ModelError
from coconut_ds.formats import TEXT, Format
from coconut_ds.hub import load_by_name
from coconut_ds.methods.base import Ids, MarkerIds, TokenizedProblem

MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
"""The markers, in the order in which the reference implementation adds them, so that its state dicts fit."""
PAUSE = "<|pause|>"
"""Added only for methods with pause tokens: another vocabulary row would change the numbers of other methods."""
END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a local folder or the Hugging Face hub.

    Raises:
        ModelError: it cannot be loaded, cannot read text, or has no end-of-sequence token; says what to set.
    """
    tokenizer = load_by_name(
        read_tokenizer,
        name,
        "model.tokenizer",
        "set model.tokenizer to a local folder, or model.tokenizer=dataset to build a word-level one from the "
        "problems (models trained from scratch)",
    )
    check_tokenizer(tokenizer, f"model.tokenizer={name}:", "set a tokenizer that has one")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str, advice: str) -> None:
    """Refuses a tokenizer that cannot read text, or that has no token to end a text with.

    Args:
        tokenizer: the tokenizer.
        where: the beginning of the message, which names the tokenizer.
        advice: what to do about a tokenizer without an end-of-sequence token, for the message.

    Raises:
        ModelError: says what is wrong.
    """
    if fault := encoding_fault(tokenizer):
        raise ModelError(f"{where} {fault}; use the files of the tokenizer that the model was trained with")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{where} has no end-of-sequence token; {advice}")


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int | None, int | None, dict[str, Any]]:
    """Everything that determines which ids a text becomes: class, ids of the tokens that end and begin a text, state.

    Names and folders do not count, nor the truncation and padding of the latest call.
    """
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state = {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    else:
        places = {"name_or_path", *tokenizer.vocab_files_names}
        arguments = {name: value for name, value in tokenizer.init_kwargs.items() if name not in places}
        state = {"vocabulary": tokenizer.get_vocab(), "arguments": arguments}
    return type(tokenizer).__name__, tokenizer.eos_token_id, tokenizer.bos_token_id, state


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase, other_ends: Sequence[int] = ()) -> str:
    """SHA-256 of everything that maps text to ids and back; names and paths do not count.

    Args:
        tokenizer: see ``tokenizer_identity``.
        other_ends: ids of the tokens that end a text, besides the tokenizer's own.
    """
    parts = [*tokenizer_identity(tokenizer), *other_ends]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def format_identity(tokenizer: PreTrainedTokenizerBase, format: Format) -> dict[str, Any]:
    """The fields of a format, with the source of the tokenizer's chat template if the format uses it.

    Without one, the key ``chat_template`` is left out, as in versions that had no chat templates.

    Raises:
        ModelError: see ``chat_template_of``.
    """
    fields = asdict(format)
    del fields["chat_template"]
    return {**fields, "chat_template": chat_template_of(tokenizer)} if format.chat_template else fields


def build_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Builds a word-level tokenizer that knows the words of ``texts``.

    Newlines are tokens; spaces only separate words. Punctuation at the end of a word is a token of its own, so
    ``lempus.`` and ``lempus`` share a token, while ``1,000`` is one token. Decoding inserts single spaces, but none
    before punctuation.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[.,;:?!](?=[\s.,;:?!]|\z)"), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"[ \t\r]+"), behavior="removed"),
        ]
    )
    words: dict[str, None] = {}
    for text in (*texts, TEXT.answer_start, "\n"):
        for word, _ in splitter.pre_tokenize_str(text):
            words[word] = None
    vocabulary = {word: index for index, word in enumerate([UNKNOWN, END_OF_TEXT, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(
        [
            # Put a space before every token except punctuation and newlines, join, and remove spaces at line starts.
            decoders.Replace(Regex(r"\A(?![\n.,;:?!]\z)"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<![^\n]) "), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
    )


def add_markers(tokenizer: PreTrainedTokenizerBase, pause: bool = False) -> tuple[MarkerIds, list[str]]:
    """Adds the markers that the tokenizer lacks. Returns the ids of all markers and the names that were missing.

    Args:
        tokenizer: modified in place.
        pause: whether to add ``<|pause|>`` too. An existing ``<|pause|>`` is never removed.
    """
    known = tokenizer.get_vocab()
    missing = [name for name in (*MARKERS, *([PAUSE] if pause else [])) if name not in known]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in missing], special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    start, end, thought = (vocabulary[name] for name in MARKERS)
    return MarkerIds(start, end, thought, vocabulary.get(PAUSE)), missing


def tokenize(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], format: Format = TEXT
) -> list[TokenizedProblem]:
    """Tokenizes all problems, in three batches: questions, steps and answers."""
    eos = int(tokenizer.eos_token_id)
    cue = encode_cue(tokenizer, format)
    before = "" if cue else format.answer_start
    questions = encode_questions(tokenizer, [problem.question for problem in problems], format)
    steps = encode(tokenizer, [f"{step}{format.step_end}" for problem in problems for step in problem.steps])
    answers = encode(tokenizer, [before + problem.answer for problem in problems])
    tokenized, position = [], 0
    for problem, question, answer in zip(problems, questions, answers, strict=True):
        own = tuple(steps[position : position + len(problem.steps)])
        position += len(problem.steps)
        tokenized.append(TokenizedProblem(question, own, [*answer, eos], cue))
    return tokenized


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], format: Format = TEXT
) -> list[list[int]]:
    """Tokenizes questions, with whatever the format adds before and after them.

    Tokens that the tokenizer itself adds before a text are kept. Those that it adds after a text are left out: thoughts
    or text follow, and the question has not ended the sequence. With ``format.chat_template``, the tokenizer's chat
    template alone decides what surrounds a question.

    Raises:
        ModelError: the format needs a chat template, and the tokenizer has none that can be used.
    """
    if format.chat_template:
        return encode_chat(tokenizer, questions)
    encoded = encode(tokenizer, [format.question(question) for question in questions], special=True)
    if after := len(added_around(tokenizer).after):
        encoded = [ids[:-after] for ids in encoded]
    start = [int(tokenizer.eos_token_id)] if format.starts_with_eos else []
    return [[*start, *ids] for ids in encoded] if start else encoded


def question_places(tokenizer: PreTrainedTokenizerBase, question: str, format: Format) -> list[Place]:
    """The place in a question of each token of ``encode_questions``.

    Tokens that are not part of the question, such as those of a chat template, have places before its first or after
    its last character.

    Raises:
        DataError, ModelError: see ``encoding.places`` and ``chat.chat_places``.
    """
    if format.chat_template:
        return chat_places(tokenizer, question)
    found = places(tokenizer, format.question(question))
    if after := len(added_around(tokenizer).after):
        found = found[:-after]
    start = [Place(0, 0)] if format.starts_with_eos else []
    given = format.places(question)
    return start + [Place(given[one.start], given[one.end]) for one in found]


def encode_cue(tokenizer: PreTrainedTokenizerBase, format: Format) -> list[int]:
    """The tokens that announce the answer (``TokenizedProblem.cue``); empty in formats without such a cue."""
    return encode(tokenizer, [format.answer_start])[0] if format.one_token else []


def encode_announcements(tokenizer: PreTrainedTokenizerBase, format: Format) -> tuple[Ids, ...]:
    """The tokens with which an answer may begin before its value, with and without the space before the value.

    The space is a token of its own or belongs to the value's first token, depending on tokenizer and value. Empty in
    formats with a cue, which is not part of the answer.
    """
    if format.one_token:
        return ()
    return tuple(encode(tokenizer, [format.answer_start, format.answer_start.rstrip()]))


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], format: Format
) -> tuple[list[int], list[list[int]]]:
    """The tokens that announce an answer, and for each answer the tokens that follow, including end of sequence.

    Together they are exactly the tokens of the answer in training. A space between them may belong to either part,
    depending on the tokenizer.
    """
    eos, cue = int(tokenizer.eos_token_id), encode_cue(tokenizer, format)
    if cue:
        return cue, [[*ids, eos] for ids in encode(tokenizer, list(answers))]
    whole = encode(tokenizer, [format.answer_start + answer for answer in answers])
    start = encode(tokenizer, [format.answer_start.rstrip()])[0]
    shared = min((_num_common(start, ids) for ids in whole), default=len(start))
    return start[:shared], [[*ids[shared:], eos] for ids in whole]


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], markers: MarkerIds, eos_ids: Container[int]) -> str:
    """The text of generated ids, without markers, up to the first token that ends a text; see ``text_of``."""
    hidden, kept = markers.all(), []
    for token in ids:
        if token in eos_ids:
            break
        if token not in hidden:
            kept.append(token)
    return text_of(tokenizer, kept)
