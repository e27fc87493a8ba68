"""Prepares questions for probing, and runs requests on them in batches.

A *case* is a question with its prompt in a form that is the same for every method: the latents (thoughts or pauses) are
one contiguous run of positions in the prompt. Pauses are represented as thoughts whose vector is given in advance (the
embedding of the pause token). If a model decides itself when to start thinking, the text that it writes before becomes
part of the prompt. Because of this, every method can be analysed and changed in the same way.

Legend: ``L`` latents (thoughts or pauses), ``D`` hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.thought_noise import NoiseSettings, SampleNoise
from coconut_ds.parts import Parts, in_parts
from coconut_ds.reasoner import Reasoner

SLOTS = 128
"""Number of requests that the engine processes at the same time. Probing makes many short requests."""
SERVED_SLOTS = 32
"""The same number in a server, where a part must be short and others need memory too."""

OnProgress = Callable[[int, int], None]
"""Called with the number of finished requests and the total number; may raise to stop the work."""


class Plain:
    """Base class of results whose fields are plain values."""

    def as_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists, strings and numbers, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Sample:
    """Which sample of each question is examined: the one that an evaluation with these settings makes."""

    noise: NoiseSettings
    """Noise in the thoughts."""
    seed: int = 0
    """Seed of the noise."""
    number: int = 0
    """Number of the sample, from 0."""

    def of(self, prompter: Prompter, question: Sequence[int]) -> SampleNoise | None:
        """The noise of a question, whose token ids are given; None if there is none."""
        first = prompter.sample_noise(question, self.noise, self.seed)
        return None if first is None else replace(first, sample=self.number)


@dataclass(frozen=True, eq=False)
class Case:
    """A question with its prompt, prepared for probing."""

    question: str
    prompt: Layout
    """The prompt; all latents, including pauses, are represented as thoughts."""
    given: Mapping[int, Tensor] = field(default_factory=dict)
    """Vectors [D] that are fed in place of the model's own, by index in the run of latents (from 0). They are input
    embeddings: they do not go through the feed."""
    noise: SampleNoise | None = None
    """Noise in the thoughts; vectors in ``given`` get none."""
    written: tuple[int, ...] = ()
    """Tokens, part of the prompt, that the model wrote before it started to think, if it decides that itself."""

    @property
    def num_latents(self) -> int:
        """Number of latents, L."""
        return self.prompt.num_thoughts

    def changed(self, given: Mapping[int, Tensor]) -> "Case":
        """A copy in which the vectors of ``given`` are fed too."""
        return replace(self, given={**self.given, **given})

    def edit(self, index: int, own: Tensor) -> Tensor:
        """The vector to feed for latent ``index``, where the model would feed ``own``; see ``Request.edit_thought``."""
        return self.given.get(index, own)

    def resized(self, vectors: Sequence[Tensor]) -> "Case":
        """A copy with the same prompt in which all latents are replaced by ``vectors``, possibly more or fewer."""
        first, count = self.prompt.first_thought, self.num_latents
        ids = list(self.prompt.input_ids)
        after = ids[first + count :]
        # Without latents there is no placeholder token to repeat. Any id works, as placeholders are never embedded.
        filler = ids[first] if count else 0
        ids = [*ids[:first], *[filler] * len(vectors), *after]
        return replace(self, prompt=_layout(ids, first, len(vectors)), given=dict(enumerate(vectors)))

    def shortened(self, count: int) -> "Case":
        """A copy without the last ``count`` tokens of the prompt, none of which may be a latent."""
        if not count:
            return self
        ids = list(self.prompt.input_ids[: len(self.prompt) - count])
        return replace(self, prompt=_layout(ids, self.prompt.first_thought, self.num_latents))

    def widened(self, embeddings: Tensor) -> "Case":
        """A copy in which the n tokens before the latents become latents too, fed as ``embeddings`` [n, D]."""
        assert self.noise is None, "the noise of each thought depends on its index"
        extra = len(embeddings)
        first = self.prompt.first_thought - extra
        assert first > 0, "at least one token must remain before the run of latents"
        given = {index + extra: vector for index, vector in self.given.items()} | dict(enumerate(embeddings))
        prompt = _layout(list(self.prompt.input_ids), first, self.num_latents + extra)
        return replace(self, prompt=prompt, given=given)


@in_parts
def prepare(
    reasoner: Reasoner,
    questions: Sequence[str],
    n_thoughts: int | None = None,
    max_new_tokens: int = 128,
    sample: Sample | None = None,
) -> Parts[list[Case]]:
    """Prepares a case for each question.

    Args:
        reasoner: the model.
        questions: any number of questions.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: for models that decide themselves when to start thinking: length limit of the text before that.
        sample: which sample of each question; None: the thoughts have no noise.

    Raises:
        DataError: thoughts, or noise in them, are requested and the method does not think.
    """
    prompter, thoughts = reasoner.prompter, reasoner.thoughts(n_thoughts)
    prompter.check(thoughts)
    encoded = prompter.encode(questions)
    if sample is not None:
        plain = yield from prepare.parts(reasoner, questions, n_thoughts, max_new_tokens)
        noises = [sample.of(prompter, question) for question in encoded]
        return [replace(case, noise=noise) for case, noise in zip(plain, noises, strict=True)]
    if prompter.method.starts_thinking:
        return (yield from _after_writing(reasoner, questions, encoded, thoughts, max_new_tokens))
    layouts = [prompter.prompt(ids, thoughts) for ids in encoded]
    if not (prompter.method.pauses and thoughts.count):
        return [Case(question, layout) for question, layout in zip(questions, layouts, strict=True)]
    pause = prompter.markers.pause
    assert pause is not None
    vectors = dict.fromkeys(range(thoughts.count), embeddings(reasoner, [pause])[0])
    return [
        Case(question, _layout(list(layout.input_ids), layout.input_ids.index(pause), thoughts.count), vectors)
        for question, layout in zip(questions, layouts, strict=True)
    ]


def _after_writing(
    reasoner: Reasoner,
    questions: Sequence[str],
    encoded: Sequence[list[int]],
    thoughts: Thoughts,
    max_new_tokens: int,
) -> Parts[list[Case]]:
    """Cases for a model that decides itself when to start thinking. If it never starts, the case has no thoughts."""
    prompter = reasoner.prompter
    requests = [prompter.request(ids, thoughts, Writing(max_new_tokens)) for ids in encoded]
    made = yield from run_requests.parts(reasoner, requests)
    return [
        _case_after_text(prompter.markers, question, ids, one.tokens, thoughts.count)
        for question, ids, one in zip(questions, encoded, made, strict=True)
    ]


def answered_case(reasoner: Reasoner, question: str, num_latents: int, tokens: Sequence[int]) -> Case:
    """The case of a question whose answer ``tokens`` was already generated, with ``num_latents`` latents."""
    prompter = reasoner.prompter
    if not prompter.method.starts_thinking:
        return prepare(reasoner, [question], num_latents)[0]
    return _case_after_text(prompter.markers, question, prompter.encode([question])[0], tokens, num_latents)


def _case_after_text(markers: MarkerIds, question: str, ids: Sequence[int], tokens: Sequence[int], count: int) -> Case:
    """The case of a model that has written ``tokens``, which may contain the marker that starts its thoughts."""
    if markers.start not in tokens:
        return Case(question, _layout([*ids], len(ids), 0))
    written = tokens[: tokens.index(markers.start)]
    before = [*ids, *written, markers.start]
    latents = [markers.thought] * count
    return Case(question, _layout([*before, *latents, markers.end], len(before), count), written=tuple(written))


def _layout(ids: list[int], first: int, count: int) -> Layout:
    return Layout(ids, [IGNORE] * len(ids), first if count else len(ids), count)


def embeddings(reasoner: Reasoner, ids: Sequence[int]) -> Tensor:
    """[n, D] the input embeddings of tokens, on the model's device."""
    with torch.no_grad():
        return reasoner.loop.embed(torch.tensor(list(ids), device=reasoner.loop.device))


def writing_request(case: Case, reasoner: Reasoner, max_new_tokens: int, cue: Sequence[int] = ()) -> Request:
    """A request to generate the text after the latents and the tokens of ``cue``, greedily."""
    return _request(case, reasoner, cue, max_new_tokens)


def scoring_request(case: Case, reasoner: Reasoner, tokens: Sequence[int], cue: Sequence[int] = ()) -> Request:
    """A request for the log probabilities of ``tokens`` after the latents and the tokens of ``cue``."""
    return replace(_request(case, reasoner, cue, len(tokens)), continuation=tuple(tokens))


def _request(case: Case, reasoner: Reasoner, cue: Sequence[int], length: int) -> Request:
    prompter, prompt = reasoner.prompter, case.prompt
    if cue:
        prompt = _layout([*prompt.input_ids, *cue], prompt.first_thought, prompt.num_thoughts)
    one_token = prompter.format.one_token and not prompter.method.writes_steps
    return Request(
        prompt,
        max_new_tokens=1 if one_token else length,
        at_once=prompter.at_once,
        suppress=prompter.markers.all(),
        log_probabilities=True,
        keep_thoughts=True,
        noise=case.noise,
        edit_thought=case.edit if case.given else None,
    )


@in_parts
def run_requests(
    reasoner: Reasoner, requests: Sequence[Request], progress: OnProgress | None = None
) -> Parts[list[Completion]]:
    """Runs all requests with continuous batching and returns their completions, in the same order."""
    done = 0

    def one_more(ticket: int, completion: Completion) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(requests))

    prompter = reasoner.prompter
    most = reasoner.pass_positions
    # Limited passes go with a limited cache, since several functions may be between two parts.
    slots = SLOTS if most is None else SERVED_SLOTS
    work = generate.parts(
        reasoner.loop, requests, prompter.eos_ids, slots, prompter.text, one_more, pass_positions=most
    )
    return (yield from work)
