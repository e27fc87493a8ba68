"""All completions of a list of requests, from an engine made for them."""

from collections.abc import Callable, Iterable, Sequence

from coconut_ds.generation.requests import Completion, Request, check_prompts
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import context_length


def generate(
    loop: LatentLoop,
    requests: Sequence[Request],
    eos_ids: Iterable[int],
    slots: int = 32,
    decode: Callable[[Sequence[int]], str] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
    agree: Callable[[int], int] = int,
) -> list[Completion]:
    """A completion for each request, in their order.

    Args:
        loop: the model; under DeepSpeed call ``engine(generate, requests, ...)``.
        requests: what to continue; none is possible (a rank without problems).
        eos_ids: tokens that end a continuation.
        slots: requests that run at a time.
        decode: text of tokens; needed for stop strings.
        on_done: told of each completion as it ends, with the request's index.
        agree: see ``ThinkingEngine.run``.

    Raises:
        DataError: a prompt leaves no room in the model's context.
    """
    limit = context_length(loop.model)
    check_prompts([request.prompt for request in requests], limit)
    longest = max((request.num_positions for request in requests), default=1)
    capacity = longest if limit is None else min(longest, limit)
    engine = ThinkingEngine(loop, eos_ids, min(slots, max(len(requests), 1)), capacity, decode)
    gathered = _Gathered(on_done)
    for request in requests:
        engine.submit(request, gathered)
    engine.run(agree)
    return [gathered.completions[ticket] for ticket in range(len(requests))]


class _Gathered(Listener):
    """Completions by ticket, which count from 0."""

    def __init__(self, on_done: Callable[[int, Completion], None] | None) -> None:
        self.completions: dict[int, Completion] = {}
        self._on_done = on_done

    def on_done(self, ticket: int, completion: Completion) -> None:
        self.completions[ticket] = completion
        if self._on_done is not None:
            self._on_done(ticket, completion)
