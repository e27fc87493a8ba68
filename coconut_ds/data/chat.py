"""Questions of chat models: the tokenizer's own chat template turns a question into the prompt.

A question is the only message of a conversation, a user's, and the prompt ends where the assistant's answer begins. Its
tokens are those of ``tokenizer.apply_chat_template([{"role": "user", "content": question}],
add_generation_prompt=True)``. Two things differ, on purpose:

* Templates that print today's date (Llama 3) print ``DATE`` instead, which these templates themselves use where there
  is no clock. Otherwise a run would train on other prompts tomorrow.
* The name of a special token *within a question* stays text, as it does without a chat template: a visitor who types
  ``<|im_end|>`` does not end a message, and text that spells a thought marker is no marker.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.encoding import Place, encode, places
from coconut_ds.errors import DataError, ModelError

DATE = "26 Jul 2024"
"""What templates print as today's date."""
PRIVATE = range(0xE000, 0xF900)
"""Code points that have no meaning of their own; one that a question lacks marks a place in it."""


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The source of the tokenizer's chat template.

    Raises:
        ModelError: there is none, or one whose text depends on the day.
    """
    templates = tokenizer.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not template:
        raise ModelError(
            f"data.chat_template=true: the tokenizer {name} has no chat template; set model.tokenizer to that of a "
            "chat model, or data.chat_template=false"
        )
    if "strftime_now" in template and "date_string" not in template:
        raise ModelError(
            f"data.chat_template=true: the chat template of {name} prints today's date and has no variable date_string "
            "to set it, so prompts would change from day to day; edit its chat_template, or set "
            "data.chat_template=false"
        )
    return str(template)


def digest_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the source of the tokenizer's chat template.

    Raises:
        ModelError: see ``chat_template_of``.
    """
    return hashlib.sha256(chat_template_of(tokenizer).encode()).hexdigest()


def encode_chat(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[list[int]]:
    """The token ids of the prompt of each question.

    Raises:
        ModelError: see ``chat_template_of``; or the template refuses a single message of a user.
    """
    template = chat_template_of(tokenizer)
    names = _special_names(tokenizer)
    prompts = [list(_pieces(tokenizer, template, question, names)) for question in questions]
    written = {ours: [text for prompt in prompts for text, own in prompt if own is ours] for ours in (True, False)}
    ids = {ours: iter(encode(tokenizer, texts, names_are_tokens=ours)) for ours, texts in written.items()}
    return [[token for _, ours in prompt for token in next(ids[ours])] for prompt in prompts]


def chat_places(tokenizer: PreTrainedTokenizerBase, question: str) -> list[Place]:
    """The place in a question of each token of its prompt; those of the template are before its start or after its end.

    Raises:
        DataError: the tokenizer does not know the places, or the template does not print the question as it is.
        ModelError: see ``encode_chat``.
    """
    template = chat_template_of(tokenizer)
    pieces = list(_pieces(tokenizer, template, question, _special_names(tokenizer)))
    around = _rendered(tokenizer, template, mark := _unused(question)).split(mark)
    if len(around) < 2 or question.join(around) != "".join(text for text, _ in pieces):
        raise DataError(
            f"the tokenizer's chat template changes the question {question[:60]!r}, so it has no places in it"
        )
    found, shift = [], -len(around[0])
    for text, ours in pieces:
        own = places(tokenizer, text, special=False, names_are_tokens=ours)
        found += [Place(one.start + shift, one.end + shift) for one in own]
        shift += len(text)
    return found


def _special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches the name of any special token of the tokenizer; None if it has none."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None


def _unused(question: str) -> str:
    """A character that the question lacks, to mark a place in it."""
    return next(mark for mark in map(chr, PRIVATE) if mark not in question)


def _pieces(
    tokenizer: PreTrainedTokenizerBase, template: str, question: str, names: re.Pattern[str] | None
) -> Iterator[tuple[str, bool]]:
    """The texts that a prompt consists of, and whether names of special tokens in each are these tokens."""
    found = names.findall(question) if names is not None else []
    if not found:
        yield _rendered(tokenizer, template, question), True
        return
    assert names is not None
    place = _unused(question)
    parts = _rendered(tokenizer, template, names.sub(place, question)).split(place)
    # A template may use the question several times, or not at all; the names then follow in the same order each time.
    for number, part in enumerate(parts):
        if number:
            yield found[(number - 1) % len(found)], False
        yield part, True


def _rendered(tokenizer: PreTrainedTokenizerBase, template: str, question: str) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            date_string=DATE,
        )
    except TemplateError as error:
        raise ModelError(
            f"data.chat_template=true: the tokenizer's chat template refuses a single message of a user ({error}); set "
            "data.chat_template=false"
        ) from error
    assert isinstance(text, str)
    return text
