"""A question through the shared engine, and its thoughts looked at between two passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coconut_ds.probing.trace import ThoughtTrace, trace_of
from coconut_ds.reasoner import Reasoner
from serve.asking import Ask
from serve.service import Choice, Service


@dataclass(frozen=True)
class Traced:
    """A continuation and what was thought on the way to it."""

    choice: Choice
    trace: ThoughtTrace


async def trace_request(service: Service, ask: Ask, top_k: int, tokens: Sequence[str], request_id: str = "") -> Traced:
    """The first prompt's trace. The answer is made together with other requests; decoding has the model for itself.

    Raises:
        ServiceError: it cannot be done, or was not.
    """
    ask = replace(ask, prompts=ask.prompts[:1], samples=1, keep_thoughts=True)
    question = ask.prompts[0]
    assert isinstance(question, str), "a trace begins with text"
    _, (choice,) = await service.answer(ask, request_id)

    def decode(reasoner: Reasoner) -> ThoughtTrace:
        count = reasoner.thoughts(ask.n_thoughts, ask.force_text_after).count
        return trace_of(reasoner, question, choice.completion, count, top_k=top_k, tokens=tokens)

    return Traced(choice, await service.call(ask.model, decode))
