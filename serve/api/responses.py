"""Bodies of responses: models for the generated API documentation, and the formats of the two completion routes."""

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from coconut_ds.data.encoding import unknown_note, unknown_token
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Prompter
from serve.api.logprobs import NamedToken, ScoredToken
from serve.aside import aside
from serve.requests.asking import Prompt
from serve.requests.continuations import Choice


class ResponseModel(BaseModel):
    """Base of all response bodies."""

    model_config = ConfigDict(extra="allow")


class ErrorFields(ResponseModel):
    """Describes an error; ``param`` names the field of the request that caused it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(ResponseModel):
    """An error, in OpenAI's format."""

    error: ErrorFields


class TopToken(ResponseModel):
    """One of the most likely tokens of a decoded thought."""

    token: str
    probability: float


class ThoughtFields(ResponseModel):
    """A thought decoded by the model's head; this projection does not show what the thought means to the model."""

    number: int
    top: list[TopToken]
    entropy: float


class Usage(ResponseModel):
    """Token counts. ``completion_tokens`` includes thoughts; ``completion_tokens_details.reasoning_tokens`` is their
    number."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]
    prompt_tokens_details: dict[str, int]


class CompletionChoice(ResponseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str
    thoughts: list[ThoughtFields] = Field([], description="Only present with return_thoughts")


WARNINGS: list[str] = Field(
    [], description="Only present if there are words of the prompt that the tokenizer does not know"
)


class CompletionResponse(ResponseModel):
    """A ``text_completion`` object; streams consist of chunks of the same type."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    warnings: list[str] = WARNINGS


class ChatMessage(ResponseModel):
    """The model's message."""

    role: str
    content: str


class ChatChoice(ResponseModel):
    """One continuation."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str
    thoughts: list[ThoughtFields] = Field([], description="Only present with return_thoughts")


class ChatResponse(ResponseModel):
    """A ``chat.completion`` object; streams consist of ``chat.completion.chunk`` objects."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    warnings: list[str] = WARNINGS


def usage_of(choices: Sequence[Choice], samples: int) -> dict[str, Any]:
    """Token counts of a request; the prompt of several samples is counted once."""
    prompts = choices[::samples]
    prompt = sum(choice.num_prompt_tokens for choice in prompts)
    thoughts = sum(choice.completion.num_thoughts for choice in choices)
    written = sum(len(choice.completion.tokens) for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written + thoughts,
        "total_tokens": prompt + written + thoughts,
        "completion_tokens_details": {"reasoning_tokens": thoughts},
        "prompt_tokens_details": {"cached_tokens": sum(choice.completion.num_shared for choice in prompts)},
    }


async def warnings_of(prompter: Prompter, prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """The field ``warnings`` about the texts of a request; empty if there is nothing to say."""
    if unknown_token(prompter.tokenizer) is None:
        return {}
    note = await aside(unknown_note, prompter.tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)])
    return {} if note is None else {"warnings": [note]}


def thoughts_of(decoded: Sequence[DecodedThought]) -> list[dict[str, Any]]:
    """Decoded thoughts in the format of ``ThoughtFields``."""
    return [
        {
            "number": number,
            "top": [
                {"token": token, "probability": probability}
                for token, probability in zip(one.tokens, one.probabilities, strict=True)
            ],
            "entropy": one.entropy,
        }
        for number, one in enumerate(decoded, 1)
    ]


class ResponseFormat(Protocol):
    """The format in which a completion route writes choices."""

    prefix: str
    """Of the response's ``id``."""
    kind: str
    """``object`` of a whole response."""
    chunk_kind: str
    """``object`` of a stream's chunks."""

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A complete continuation."""
        ...

    def first(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream sends before a continuation's first text; None: nothing is sent."""
        ...

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """A part of a continuation in a stream; ``reason``: why it finished, in its last chunk."""
        ...

    def logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """Log probabilities of tokens."""
        ...


class CompletionFormat:
    """Format of ``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """See ``ResponseFormat``."""
        return self.chunk(choice.index, choice.text, logprobs, choice.finish_reason)

    def first(self, index: int) -> dict[str, Any] | None:
        """See ``ResponseFormat``."""
        return None

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """See ``ResponseFormat``."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """See ``ResponseFormat``. Parts of characters are named as OpenAI names them: ``bytes:`` and the bytes."""

        def name(one: NamedToken) -> str:
            return f"bytes:{one.name}" if one.is_part else one.name

        return {
            "tokens": [name(one.token) for one in tokens],
            "token_logprobs": [one.token.log_probability for one in tokens],
            "top_logprobs": [{name(each): each.log_probability for each in one.likeliest} for one in tokens],
            "text_offset": [one.offset for one in tokens],
        }


class ChatFormat:
    """Format of ``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """See ``ResponseFormat``."""
        message = {"role": "assistant", "content": choice.text}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def first(self, index: int) -> dict[str, Any] | None:
        """See ``ResponseFormat``."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """See ``ResponseFormat``."""
        delta = {"content": text} if text or reason is None else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """See ``ResponseFormat``."""

        def fields(one: NamedToken) -> dict[str, Any]:
            own = None if one.bytes is None else list(one.bytes)
            return {"token": one.name, "logprob": one.log_probability, "bytes": own}

        content = [{**fields(one.token), "top_logprobs": [fields(each) for each in one.likeliest]} for one in tokens]
        return {"content": content, "refusal": None}
