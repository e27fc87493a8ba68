"""Refuses requests that a model cannot run, before they share a pass with others."""

from collections.abc import Collection, Iterable

from coconut_ds.errors import DataError
from coconut_ds.generation.requests import Request
from coconut_ds.model.latent_loop import LatentLoop


def check_request(request: Request, loop: LatentLoop, eos_ids: Collection[int], capacity: int) -> None:
    """Checks what only the model knows.

    Args:
        request: the request.
        loop: the model.
        eos_ids: tokens that end a continuation.
        capacity: positions in a slot.

    Raises:
        DataError: the prompt leaves no room for a token, a token is unknown to the model, no token may be chosen, or
            there is to be noise on values and the model was not prepared for it.
    """
    if len(request.prompt) >= capacity:
        raise DataError(
            f"prompt: has {len(request.prompt)} positions, thoughts included; there is room for {capacity}, "
            "new tokens included; shorten it or use fewer thoughts"
        )
    vocabulary = loop.vocabulary
    _check_ids("prompt", request.prompt.input_ids, vocabulary)
    _check_ids("suppress", request.suppress, vocabulary)
    _check_ids("continuation", request.continuation or (), vocabulary)
    if request.thinking is not None:
        _check_ids("thinking", (request.thinking.start, request.thinking.end), vocabulary)
    if request.at_once is not None:
        _check_ids("at_once.marker", (request.at_once.marker,), vocabulary)
    banned = (*request.suppress, *(eos_ids if request.min_new_tokens > 0 else ()))
    if len(banned) >= vocabulary and len(set(banned)) >= vocabulary:
        raise DataError(
            f"suppress: excludes all {vocabulary} tokens of the vocabulary, with the ends of sequence that "
            f"min_new_tokens={request.min_new_tokens} excludes; expected at least one token that may be chosen"
        )
    if request.has_noisy_values and loop.value_directions is None:
        raise DataError(
            "noise: found svp; this model has no singular vectors of its value projections: set LatentLoop."
            "value_directions, or use gaussian or dropout"
        )


def _check_ids(name: str, ids: Iterable[int], vocabulary: int) -> None:
    found = list(ids)
    if found and not 0 <= min(found) <= max(found) < vocabulary:
        wrong = next(token for token in found if not 0 <= token < vocabulary)
        raise DataError(f"{name}: found token id {wrong}; expected 0 to {vocabulary - 1}")
