"""Questions made ready for probing, and what is asked of them in batches.

A *case* is a question whose latents stand in its prompt as one run, whatever the method: pauses are laid out like
thoughts that are always given (the pause's embedding), and what a model writes before it begins to think by itself
becomes part of the prompt. So every method can be looked into and changed in the same way.

Legend: ``L`` thoughts or pauses, ``D`` hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Thoughts, Writing
from coconut_ds.generation.requests import Completion, Jacobi, Request
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import Reasoner

SLOTS = 128
"""Requests at a time. Many short ones share a pass."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many requests have ended; may raise, which ends the work."""


class Plain:
    """A result that consists of plain values."""

    def as_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists, strings and numbers, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True, eq=False)
class Case:
    """A question and its prompt."""

    question: str
    prompt: Layout
    """All latents stand in it as thoughts."""
    given: Mapping[int, Tensor] = field(default_factory=dict)
    """By index in the run of latents (from 0): vectors [D] that are fed in place of the model's own states."""
    written: tuple[int, ...] = ()
    """What the model wrote before it began to think, where it begins by itself; part of the prompt."""

    @property
    def num_latents(self) -> int:
        """L."""
        return self.prompt.num_thoughts

    def changed(self, given: Mapping[int, Tensor]) -> "Case":
        """The same, further vectors given."""
        return replace(self, given={**self.given, **given})

    def edit(self, index: int, state: Tensor) -> Tensor:
        """What is fed back for latent ``index``; see ``Request.edit_thought``."""
        return self.given.get(index, state)

    def resized(self, vectors: Sequence[Tensor]) -> "Case":
        """The same prompt with other latents, all of them given; perhaps more or fewer."""
        first, count = self.prompt.first_thought, self.num_latents
        ids = list(self.prompt.input_ids)
        after = ids[first + count :]
        # Without a latent there is no token to repeat; what stands for a thought is never embedded.
        filler = ids[first] if count else 0
        ids = [*ids[:first], *[filler] * len(vectors), *after]
        return replace(self, prompt=_layout(ids, first, len(vectors)), given=dict(enumerate(vectors)))

    def shortened(self, count: int) -> "Case":
        """The same without the last ``count`` tokens of the prompt, none of which is a latent."""
        if not count:
            return self
        ids = list(self.prompt.input_ids[: len(self.prompt) - count])
        return replace(self, prompt=_layout(ids, self.prompt.first_thought, self.num_latents))

    def widened(self, embeddings: Tensor) -> "Case":
        """The same prompt, its run of latents begun earlier by tokens that are given as vectors [n, D]."""
        extra = len(embeddings)
        first = self.prompt.first_thought - extra
        assert first > 0, "a token stands before the run"
        given = {index + extra: vector for index, vector in self.given.items()} | dict(enumerate(embeddings))
        prompt = _layout(list(self.prompt.input_ids), first, self.num_latents + extra)
        return replace(self, prompt=prompt, given=given)


def prepare(
    reasoner: Reasoner, questions: Sequence[str], n_thoughts: int | None = None, max_new_tokens: int = 128
) -> list[Case]:
    """Cases of questions.

    Args:
        reasoner: the model.
        questions: any number.
        n_thoughts: thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: longest text before the model begins to think, where it begins by itself.

    Raises:
        DataError: the method does not think, and thoughts were asked for.
    """
    prompter, thoughts = reasoner.prompter, reasoner.thoughts(n_thoughts)
    prompter.check(thoughts)
    encoded = prompter.encode(questions)
    if prompter.method.starts_thinking:
        return _after_writing(reasoner, questions, encoded, thoughts, max_new_tokens)
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
) -> list[Case]:
    """Cases of a model that begins to think by itself; one that never does has a case without thoughts."""
    prompter = reasoner.prompter
    requests = [prompter.request(ids, thoughts, Writing(max_new_tokens)) for ids in encoded]
    made = run_requests(reasoner, requests)
    return [
        _written(prompter.markers, question, ids, one.tokens, thoughts.count)
        for question, ids, one in zip(questions, encoded, made, strict=True)
    ]


def case_behind(reasoner: Reasoner, question: str, num_latents: int, tokens: Sequence[int]) -> Case:
    """The case of a question that the model has continued by ``tokens``, with so many latents in its prompt."""
    prompter = reasoner.prompter
    if not prompter.method.starts_thinking:
        return prepare(reasoner, [question], num_latents)[0]
    return _written(prompter.markers, question, prompter.encode([question])[0], tokens, num_latents)


def _written(markers: MarkerIds, question: str, ids: Sequence[int], tokens: Sequence[int], count: int) -> Case:
    """The case of a model that has written ``tokens``, among them perhaps the one that begins its thoughts."""
    if markers.start not in tokens:
        return Case(question, _layout([*ids], len(ids), 0))
    written = tokens[: tokens.index(markers.start)]
    before = [*ids, *written, markers.start]
    latents = [markers.thought] * count
    return Case(question, _layout([*before, *latents, markers.end], len(before), count), written=tuple(written))


def _layout(ids: list[int], first: int, count: int) -> Layout:
    return Layout(ids, [IGNORE] * len(ids), first if count else len(ids), count)


def embeddings(reasoner: Reasoner, ids: Sequence[int]) -> Tensor:
    """[n, D] input embeddings of tokens, on the model's device."""
    with torch.no_grad():
        return reasoner.loop.embed(torch.tensor(list(ids), device=reasoner.loop.device))


def writing_request(case: Case, reasoner: Reasoner, max_new_tokens: int, cue: Sequence[int] = ()) -> Request:
    """Asks for the text after a case's latents, greedily; ``cue`` are tokens given before it."""
    return _request(case, reasoner, cue, max_new_tokens)


def score(case: Case, reasoner: Reasoner, tokens: Sequence[int], cue: Sequence[int] = ()) -> Request:
    """Asks for the log probabilities of tokens after a case's latents and the tokens of a cue."""
    return replace(_request(case, reasoner, cue, len(tokens)), continuation=tuple(tokens))


def _request(case: Case, reasoner: Reasoner, cue: Sequence[int], length: int) -> Request:
    prompter, prompt = reasoner.prompter, case.prompt
    if cue:
        prompt = _layout([*prompt.input_ids, *cue], prompt.first_thought, prompt.num_thoughts)
    one_token = prompter.format.one_token and not prompter.method.writes_steps
    at_once = prompter.iterations if not prompter.method.pauses else None
    return Request(
        prompt,
        max_new_tokens=1 if one_token else length,
        jacobi=Jacobi(at_once, prompter.markers.thought) if at_once else None,
        suppress=prompter.markers.all(),
        log_probabilities=True,
        keep_thoughts=True,
        edit_thought=case.edit if case.given else None,
    )


def run_requests(
    reasoner: Reasoner, requests: Sequence[Request], progress: OnProgress | None = None
) -> list[Completion]:
    """Completions of all requests, in one continuous batch."""
    done = 0

    def one_more(ticket: int, completion: Completion) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(requests))

    prompter = reasoner.prompter
    return generate(reasoner.loop, requests, prompter.eos_ids, SLOTS, prompter.text, one_more)
