"""Turns questions into requests and generated tokens into text, for validation, evaluation, scripts and serving."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.token_bytes import CONTEXT, TokenBytes
from coconut_ds.data.tokens import decode, encode_cue, encode_questions
from coconut_ds.errors import DataError
from coconut_ds.formats import Format
from coconut_ds.generation.requests import AtOnce, Request, Sampling, Thinking
from coconut_ds.methods.base import MarkerIds, Method
from coconut_ds.methods.layout import Layout, lay_out_prompt
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.thought_noise import NO_NOISE, NoiseSettings, SampleNoise


@dataclass(frozen=True)
class Thoughts:
    """How many thoughts a model produces before it writes.

    If ``least`` or ``most`` is set, the model decides when to stop: after at least ``least`` thoughts, as soon as
    ``<|end-latent|>`` is the most probable token, and after ``most`` thoughts in any case.
    """

    number: int
    """Number of thoughts, or of pause tokens if the method uses those."""
    force_text_after: int | None = None
    """Number of thoughts after which thinking ends early; None: no such limit."""
    least: int | None = None
    """Smallest number of thoughts; None counts as 0 if ``most`` is set."""
    most: int | None = None
    """Largest number of thoughts; None counts as ``number`` if ``least`` is set."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and value < 0:
                raise DataError(f"{name}={value} thoughts: expected 0 or more")
        if self.least is not None and self.least > self.count:
            raise DataError(f"min_thoughts={self.least}: expected at most {self.count}, the largest number of thoughts")

    @property
    def count(self) -> int:
        """The number of thoughts in the prompt: the most that there can be."""
        count = self.number if self.most is None else self.most
        return count if self.force_text_after is None else min(count, self.force_text_after)

    @property
    def may_end(self) -> bool:
        """Whether the model decides when to stop thinking."""
        return self.least is not None or self.most is not None


@dataclass(frozen=True)
class Writing:
    """How the text is generated; see ``Request`` for the fields."""

    max_new_tokens: int
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    keep_thoughts: bool = False
    log_probabilities: bool = False
    num_likeliest: int = 0
    noise: NoiseSettings = NO_NOISE
    """Noise in the thoughts. It is drawn by (``sampling.seed``, question, sample, thought)."""


def question_key(question: Sequence[int]) -> str:
    """A text that identifies a question by its token ids."""
    return hashlib.blake2b(" ".join(map(str, question)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Prompter:
    """Builds prompts and requests from questions, according to a training method and a text format."""

    backbone: Backbone
    """Its tokenizer turns questions into tokens, and tokens into text."""
    method: Method
    format: Format
    parallel: Parallel | None = None
    """How all thoughts are computed at once; None: they are computed one after another."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.backbone.tokenizer

    @property
    def markers(self) -> MarkerIds:
        """The ids of the markers."""
        return self.backbone.markers

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text; the first is the one that texts end with in training."""
        return self.backbone.eos_ids

    @property
    def at_once(self) -> AtOnce | None:
        """How requests compute all thoughts at once; None: one after another, or the method has pause tokens."""
        if self.parallel is None or self.method.pauses:
            return None
        return AtOnce(self.parallel, self.markers.thought)

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """The token ids of each question."""
        return encode_questions(self.tokenizer, questions, self.format)

    def prompt(self, question: Sequence[int], thoughts: Thoughts) -> Layout:
        """The model's input for the token ids of a question: the question, markers and thoughts."""
        cue = encode_cue(self.tokenizer, self.format)
        return lay_out_prompt(self.method, question, thoughts.count, self.markers, cue)

    def request(self, question: Sequence[int], thoughts: Thoughts, writing: Writing) -> Request:
        """The request to the engine for the token ids of a question.

        Raises:
            DataError: see ``check``.
        """
        self.check(thoughts)
        noise = self.sample_noise(question, writing.noise, writing.sampling.seed)
        starts = self.method.starts_thinking
        one_token = self.format.one_token and not self.method.writes_steps
        return Request(
            self.prompt(question, thoughts),
            max_new_tokens=1 if one_token else writing.max_new_tokens,
            min_new_tokens=writing.min_new_tokens,
            sampling=writing.sampling,
            suppress=tuple(m for m in self.markers.all() if not (starts and m == self.markers.start)),
            thinking=Thinking(self.markers.start, self.markers.end, thoughts.count) if starts else None,
            at_once=self.at_once,
            min_thoughts=(thoughts.least or 0) if thoughts.may_end else None,
            end_thinking=self.markers.end,
            stop=writing.stop,
            log_probabilities=writing.log_probabilities,
            num_likeliest=writing.num_likeliest,
            keep_thoughts=writing.keep_thoughts,
            noise=noise,
        )

    def sample_noise(self, question: Sequence[int], settings: NoiseSettings, seed: int) -> SampleNoise | None:
        """The noise of the first sample of a question, whose token ids are given; None if there is none.

        It depends on the question itself, not on its place among others.

        Raises:
            DataError: the method feeds no thoughts back.
        """
        if settings.kind == "none":
            return None
        if self.method.pauses or not self.method.has_latents:
            what = "uses pause tokens" if self.method.pauses else "does not think"
            raise DataError(
                f"thought_noise={settings.kind}: method={self.method.name} {what}, so no thought is fed back that "
                "could be noisy; leave it out"
            )
        return SampleNoise(settings, f"{seed}/{question_key(question)}")

    def check(self, thoughts: Thoughts) -> None:
        """Refuses settings that do not fit the method.

        Raises:
            DataError: thoughts are requested from a method without any, or a method with pause tokens, which are given
                all at once, is to decide when to stop.
        """
        if thoughts.count and not self.method.has_latents:
            raise DataError(f"n_thoughts={thoughts.count}: method={self.method.name} does not think; leave it out")
        if thoughts.may_end and self.method.pauses:
            raise DataError(
                f"min_thoughts, max_thoughts: method={self.method.name} uses a fixed number of pause tokens; leave "
                "both out"
            )

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without markers and end of sequence."""
        return decode(self.tokenizer, tokens, self.markers, self.eos_ids)

    def as_trained(self, tokens: Sequence[int]) -> list[int]:
        """The tokens, with any token that ends a text replaced by the one that texts end with in training."""
        return [self.eos_ids[0] if token in self.eos_ids else token for token in tokens]

    def token_bytes(self, tokens: Sequence[int], before: Sequence[int] = ()) -> list[bytes | None]:
        """The bytes that each token adds to the text of the tokens before it, see ``TokenBytes.of``.

        None for markers and the end of sequence, which are not part of a text.
        """
        hidden = {*self.markers.all(), *self.eos_ids}
        shown = [token for token in tokens if token not in hidden]
        # More than a tokenizer needs as context, because some of these may be markers.
        context = [token for token in before[-2 * CONTEXT :] if token not in hidden]
        found = iter(self._bytes.of(shown, context))
        return [None if token in hidden else next(found) for token in tokens]

    def bytes_of_each(self, tokens: Sequence[int], before: Sequence[int] = ()) -> list[bytes | None]:
        """Like ``token_bytes``, but of several tokens any one of which may follow those before it."""
        hidden = {*self.markers.all(), *self.eos_ids}
        context = [token for token in before[-2 * CONTEXT :] if token not in hidden]
        found = iter(self._bytes.of_each([token for token in tokens if token not in hidden], context))
        return [None if token in hidden else next(found) for token in tokens]

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self.tokenizer)

    def cut(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of generated tokens up to the first stop string, without markers and end of sequence."""
        text = self.text(tokens)
        places = [text.find(each) for each in stop if each in text]
        return text[: min(places)] if places else text
