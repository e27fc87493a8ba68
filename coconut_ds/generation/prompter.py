"""How questions become requests, and tokens text: the same for validation, evaluation, scripts and serving."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.tokens import decode, encode_cue, encode_questions
from coconut_ds.errors import DataError
from coconut_ds.formats import Format
from coconut_ds.generation.requests import Jacobi, Request, Sampling, Thinking
from coconut_ds.methods.base import MarkerIds, Method
from coconut_ds.methods.layout import Layout, lay_out_prompt


@dataclass(frozen=True)
class Thoughts:
    """How much to think."""

    number: int
    """Thoughts, or pauses where the method pauses."""
    force_text_after: int | None = None
    """Ends thinking early, after so many."""
    least: int | None = None
    """With it or ``most``: thinking ends by itself, once ``<|end-latent|>`` is the likeliest token, but not before
    ``least`` thoughts (default 0)."""
    most: int | None = None
    """As ``least``: the most there can be (default ``number``)."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and value < 0:
                raise DataError(f"{name}={value} thoughts: expected 0 or more")
        if self.least is not None and self.least > self.count:
            raise DataError(f"min_thoughts={self.least}: there are {self.count} thoughts at most")

    @property
    def count(self) -> int:
        """How many the prompt holds."""
        count = self.number if self.most is None else self.most
        return count if self.force_text_after is None else min(count, self.force_text_after)

    @property
    def may_end(self) -> bool:
        """Whether the model may end thinking by itself."""
        return self.least is not None or self.most is not None


@dataclass(frozen=True)
class Writing:
    """How the text is written."""

    max_new_tokens: int
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    keep_thoughts: bool = False
    log_probabilities: bool = False
    num_likeliest: int = 0
    """See ``Request``."""


@dataclass(frozen=True)
class Prompter:
    """Makes requests of questions, as a method and a format want them."""

    tokenizer: PreTrainedTokenizerBase
    markers: MarkerIds
    method: Method
    format: Format
    iterations: int | None = None
    """Passes over all thoughts at once (Jacobi); None: thoughts come one by one."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return (int(self.tokenizer.eos_token_id),)

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of questions."""
        return encode_questions(self.tokenizer, questions, self.format)

    def prompt(self, question: Sequence[int], thoughts: Thoughts) -> Layout:
        """What the model is given for a question."""
        cue = encode_cue(self.tokenizer, self.format)
        return lay_out_prompt(self.method, question, thoughts.count, self.markers, cue)

    def request(self, question: Sequence[int], thoughts: Thoughts, writing: Writing) -> Request:
        """What is asked of the engine for the ids of a question.

        Raises:
            DataError: the method has no thoughts, and some were asked for.
        """
        self.check(thoughts)
        starts = self.method.starts_thinking
        one_token = self.format.one_token and not self.method.writes_steps
        return Request(
            self.prompt(question, thoughts),
            max_new_tokens=1 if one_token else writing.max_new_tokens,
            min_new_tokens=writing.min_new_tokens,
            sampling=writing.sampling,
            suppress=tuple(m for m in self.markers.all() if not (starts and m == self.markers.start)),
            thinking=Thinking(self.markers.start, self.markers.end, thoughts.count) if starts else None,
            jacobi=Jacobi(self.iterations, self.markers.thought) if self.iterations else None,
            min_thoughts=(thoughts.least or 0) if thoughts.may_end else None,
            end_thinking=self.markers.end,
            stop=writing.stop,
            log_probabilities=writing.log_probabilities,
            num_likeliest=writing.num_likeliest,
            keep_thoughts=writing.keep_thoughts,
        )

    def check(self, thoughts: Thoughts) -> None:
        """Refuses thoughts of a method that does not think."""
        if thoughts.count and not self.method.has_latents:
            raise DataError(f"n_thoughts={thoughts.count}: method={self.method.name} does not think; leave it out")
        if thoughts.may_end and self.method.pauses:
            raise DataError(f"min_thoughts, max_thoughts: method={self.method.name} pauses, there is nothing to end")

    def text(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without markers and end of sequence."""
        return decode(self.tokenizer, tokens, self.markers)

    def cut(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """As ``text``, up to the first of the stop strings."""
        text = self.text(tokens)
        places = [text.find(one) for one in stop if one in text]
        return text[: min(places)] if places else text
