"""Continuations of an ``Ask``: complete ones, and what each step of a stream adds to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Score
from serve.engine.deadlines import Deadline
from serve.engine.jobs import Event, Failed, Job, Thought, Times, Token
from serve.requests.asking import Ask
from serve.requests.text import TextStream

EndReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Choice:
    """One complete continuation. ``index``: its position among those of the ``Ask``, prompt by prompt."""

    index: int
    text: str
    finish_reason: EndReason
    completion: Completion
    num_prompt_tokens: int
    """Positions of the prompt, including markers but not thoughts."""
    times: Times


@dataclass(frozen=True)
class Delta:
    """What one step added to the continuation with this index."""

    index: int
    text: str = ""
    """New text; empty while ``TextStream`` holds it back."""
    token: int | None = None
    score: Score | None = None
    thought: Thought | None = None
    choice: Choice | None = None
    """The complete continuation; only set in its last delta."""


@dataclass
class Running:
    """The jobs of an accepted ``Ask``."""

    ask: Ask
    jobs: list[Job]
    prompter: Prompter
    deadline: Deadline
    streams: list[TextStream] = field(default_factory=list)
    """One per job; empty if the caller only wants complete continuations."""

    def choice(self, job: Job, completion: Completion) -> Choice:
        """The continuation of a completed job."""
        text = self.prompter.cut(completion.tokens, self.ask.stop)
        reason: EndReason = "length" if completion.finish_reason == "length" else "stop"
        prompt = job.request.prompt
        return Choice(job.index, text, reason, completion, len(prompt) - prompt.num_thoughts, job.times)

    def choices(self, done: Mapping[int, Completion]) -> list[Choice]:
        """The continuations of all jobs, from their completions by index."""
        return [self.choice(job, done[job.index]) for job in self.jobs]

    def delta(self, job: Job, event: Event) -> Delta:
        """What an event adds to a job's continuation.

        Raises:
            ServiceError: the job failed.
        """
        stream = self.streams[job.index]
        if isinstance(event, Thought):
            return Delta(job.index, thought=event)
        if isinstance(event, Token):
            return Delta(job.index, stream.add(event.token), event.token, event.score)
        if isinstance(event, Failed):
            raise event.error
        return Delta(job.index, stream.end(), choice=self.choice(job, event.completion))
