"""Bodies of answers, for the page that describes them, and what choices look like in each of the two protocols."""

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Score
from serve.service import Choice


class ResponseModel(BaseModel):
    """Base."""

    model_config = ConfigDict(extra="allow")


class ErrorFields(ResponseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(ResponseModel):
    """As OpenAI's."""

    error: ErrorFields


class TopToken(ResponseModel):
    """A token of a thought."""

    token: str
    probability: float


class ThoughtAnswer(ResponseModel):
    """A decoded thought: a projection by the head, not a meaning."""

    number: int
    top: list[TopToken]
    entropy: float


class Usage(ResponseModel):
    """Tokens. ``completion_tokens`` counts thoughts, which ``completion_tokens_details.reasoning_tokens`` tells."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]
    prompt_tokens_details: dict[str, int]


class CompletionChoice(ResponseModel):
    """A continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str
    thoughts: list[ThoughtAnswer] = Field([], description="With return_thoughts")


class CompletionAnswer(ResponseModel):
    """``text_completion``; streams consist of chunks of the same kind."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(ResponseModel):
    """What the model said."""

    role: str
    content: str


class ChatChoice(ResponseModel):
    """A continuation."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str
    thoughts: list[ThoughtAnswer] = Field([], description="With return_thoughts")


class ChatAnswer(ResponseModel):
    """``chat.completion``; streams consist of ``chat.completion.chunk``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


def usage_of(choices: Sequence[Choice], samples: int) -> dict[str, Any]:
    """Tokens of a request; a prompt with several samples counts once."""
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


def thoughts_of(decoded: Sequence[DecodedThought]) -> list[dict[str, Any]]:
    """Decoded thoughts as they stand in an answer."""
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


class Speaker(Protocol):
    """How one of the protocols writes choices."""

    prefix: str
    kind: str
    chunk_kind: str

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A whole continuation."""
        ...

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says before a continuation's first text; None: nothing."""
        ...

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """A part of a continuation."""
        ...

    def logprobs(self, prompter: Prompter, tokens: Sequence[tuple[int, Score]], offset: int) -> dict[str, Any]:
        """Log probabilities of tokens, the first of which stands at character ``offset``."""
        ...


class Completions:
    """``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """See ``Speaker``."""
        return self.chunk(choice.index, choice.text, logprobs, choice.finish_reason)

    def first(self, index: int) -> dict[str, Any] | None:
        """See ``Speaker``."""
        return None

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """See ``Speaker``."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, prompter: Prompter, tokens: Sequence[tuple[int, Score]], offset: int) -> dict[str, Any]:
        """See ``Speaker``."""
        texts = [prompter.text([token]) for token, _ in tokens]
        offsets = [offset + sum(map(len, texts[:number])) for number in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [score.log_probability for _, score in tokens],
            "top_logprobs": [dict(likeliest(prompter, score)) for _, score in tokens],
            "text_offset": offsets,
        }


class Chat:
    """``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """See ``Speaker``."""
        message = {"role": "assistant", "content": choice.text}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def first(self, index: int) -> dict[str, Any] | None:
        """See ``Speaker``."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """See ``Speaker``."""
        delta = {"content": text} if text or reason is None else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, prompter: Prompter, tokens: Sequence[tuple[int, Score]], offset: int) -> dict[str, Any]:
        """See ``Speaker``."""

        def named(text: str, score: float) -> dict[str, Any]:
            return {"token": text, "logprob": score, "bytes": list(text.encode())}

        content = [
            {
                **named(prompter.text([token]), score.log_probability),
                "top_logprobs": [named(*one) for one in likeliest(prompter, score)],
            }
            for token, score in tokens
        ]
        return {"content": content, "refusal": None}


def likeliest(prompter: Prompter, score: Score) -> list[tuple[str, float]]:
    """The likeliest tokens' texts; those that may not be chosen have no probability, and are left out."""
    decode = prompter.tokenizer.decode
    return [(str(decode([token])), value) for token, value in score.likeliest if value > float("-inf")]
