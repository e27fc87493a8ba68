"""Generates completions for a list of requests, with an engine that is created for them."""

from collections.abc import Callable, Iterable, Sequence

from coconut_ds.errors import ModelError
from coconut_ds.generation.requests import Completion, Request, check_prompts
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import context_length
from coconut_ds.parts import Parts, in_parts


@in_parts
def generate(
    loop: LatentLoop,
    requests: Sequence[Request],
    eos_ids: Iterable[int],
    slots: int = 32,
    decode: Callable[[Sequence[int]], str] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
    agree: Callable[[int], int] = int,
    pass_positions: int | None = None,
) -> Parts[list[Completion]]:
    """Returns a completion for each request, in their order. Each part is one operation of the engine.

    Args:
        loop: the model; under DeepSpeed call ``engine(generate, requests, ...)``.
        requests: what to continue; may be empty, on a rank that has no problems.
        eos_ids: tokens that end a continuation.
        slots: largest number of requests that run at a time.
        decode: turns tokens into text; needed only for stop strings.
        on_done: called with the index of each request and its completion, as soon as it ends.
        agree: see ``ThinkingEngine.run``.
        pass_positions: the largest number of positions in one pass, so that no part takes long; None: as is fastest.

    Raises:
        DataError: a prompt leaves no room for a token in the model's context.
        ModelError: the model's layers do not accept an attention function, or its numbers for a request are not finite.
    """
    limit = context_length(loop.model)
    check_prompts([request.prompt for request in requests], limit)
    longest = max((request.num_positions for request in requests), default=1)
    capacity = longest if limit is None else min(longest, limit)
    engine = ThinkingEngine(
        loop,
        eos_ids,
        min(slots, max(len(requests), 1)),
        capacity,
        decode,
        piece=pass_positions,
        pass_positions=pass_positions,
    )
    collector = _CompletionCollector(on_done)
    for request in requests:
        engine.submit(request, collector)
    while op := Op(agree(engine.due())):
        engine.step(op)
        yield None
    return [collector.completions[ticket] for ticket in range(len(requests))]


class _CompletionCollector(Listener):
    """Collects completions by ticket; a new engine's tickets count from 0, so they are the requests' indices."""

    def __init__(self, on_done: Callable[[int, Completion], None] | None) -> None:
        self.completions: dict[int, Completion] = {}
        self._on_done = on_done

    def on_done(self, ticket: int, completion: Completion) -> None:
        self.completions[ticket] = completion
        if self._on_done is not None:
            self._on_done(ticket, completion)

    def on_failed(self, ticket: int, error: Exception) -> None:
        if isinstance(error, ModelError):
            raise ModelError(f"request {ticket}: {error}") from error
        raise error
