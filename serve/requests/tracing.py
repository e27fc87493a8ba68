"""Runs a question through the shared engine and decodes its thoughts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coconut_ds.generation.prompter import Prompter
from coconut_ds.parts import Parts
from coconut_ds.probing.trace import ThoughtTrace, trace_of
from coconut_ds.reasoner import Reasoner
from serve.requests.asking import Ask
from serve.requests.continuations import Choice
from serve.requests.service import Service


@dataclass(frozen=True)
class Traced:
    """A continuation, the trace of its thoughts, and what has made the prompt."""

    choice: Choice
    trace: ThoughtTrace
    prompter: Prompter


async def trace_request(service: Service, ask: Ask, top_k: int, tokens: Sequence[str], request_id: str = "") -> Traced:
    """Traces the first prompt of ``ask``.

    The continuation is generated in a batch with other requests; the thoughts are then decoded between two passes.

    Args:
        service: runs the request.
        ask: model, question and number of thoughts; ``samples`` is ignored.
        top_k: number of most likely tokens reported for each state.
        tokens: texts of one token each, whose rank and log probability are reported for each state.
        request_id: identifies the request in the log.

    Raises:
        ServiceError: the request was refused or failed.
    """
    ask = service.begun(replace(ask, prompts=ask.prompts[:1], samples=1, keep_thoughts=True))
    question = ask.prompts[0]
    assert isinstance(question, str), "traces need a question as text"

    def decode(reasoner: Reasoner) -> Parts[ThoughtTrace]:
        count = reasoner.thoughts(ask.n_thoughts, ask.force_text_after).count
        return trace_of.parts(reasoner, question, choice.completion, count, top_k=top_k, tokens=tokens)

    async with service.keeping(ask):
        prompter, (choice,) = await service.answer(ask, request_id)
        trace = await service.call_in_parts(ask.model, decode, ask.client, ask.deadline)
        return Traced(choice, trace, prompter)
