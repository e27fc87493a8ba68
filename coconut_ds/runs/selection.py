"""Finds the attempts that a command-line argument names: by path, run name, attempt id, signature, or a beginning."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from coconut_ds.files import shell_word
from coconut_ds.runs.catalogue import Attempt, NotFoundError, find_attempts, is_attempt, read_attempt


def select(root: Path, text: str) -> list[Attempt]:
    """The attempts that a command-line argument names.

    Args:
        root: folder to search for ids and signatures.
        text: a path to an attempt, to something inside one, or to a folder with several; or an attempt id, a
            signature, or an unambiguous beginning of either; or a run's name, or the beginning of one name.

    Raises:
        NotFoundError: nothing matches, or the beginning is ambiguous.
    """
    if not text:
        # An unset shell variable, for example; as a path it would mean the current folder.
        raise NotFoundError("found an empty argument; expected an attempt id, a signature or a path")
    path = Path(os.path.abspath(text))
    if path.is_dir():
        inside = next((folder for folder in (path, *path.parents) if is_attempt(folder)), None)
        found = [read_attempt(inside)] if inside is not None else find_attempts(path)
        if found:
            return found
        raise NotFoundError(f"{text}: this folder contains no attempt")
    attempts = find_attempts(root)
    named = _exact(attempts, text) or _named(attempts, text) or _beginning(attempts, text)
    if not named:
        raise NotFoundError(
            f"{text}: no such attempt, signature, run name or folder; {_what_is_there(root, attempts, text)}"
        )
    return named


def select_one(root: Path, text: str) -> Attempt:
    """The single attempt that a command-line argument names; see ``select``. For a run's name, the last active one.

    Raises:
        NotFoundError: nothing matches, or several attempts do.
    """
    found = select(root, text)
    by_name = not Path(text).is_dir() and not _exact_or_beginning(found, text)
    if len(found) > 1 and not by_name:
        raise NotFoundError(
            f"{text}: matches {len(found)} attempts: {_some(shell_word(attempt.path) for attempt in found)}"
        )
    return found[-1]


def _exact_or_beginning(attempts: Sequence[Attempt], text: str) -> bool:
    """Whether the text is, or begins, the id or the signature of an attempt."""
    return any(one.id.startswith(text) or one.folder.signature.startswith(text) for one in attempts)


def best_checkpoint(place: Path) -> tuple[Path, str | None]:
    """The checkpoint that a path means: what it names, or the best one of the run or runs in a folder.

    Among several runs, that is the one with the highest accuracy on its validation problems.

    Returns:
        The path of the checkpoint, and a line that says which one was chosen; None if there was no choice.

    Raises:
        NotFoundError: none of the runs has a complete checkpoint.
    """
    if not place.is_dir() or (place / "config.json").is_file():
        return place, None
    attempts = [read_attempt(place)] if is_attempt(place) else find_attempts(place)
    if not attempts:
        return place, None
    found = [
        (one.best_accuracy or 0.0, one.updated, one.best) for one in attempts if one.best and not one.best.problems
    ]
    if not found:
        raise NotFoundError(f"{place}: none of its {len(attempts)} attempts has a complete checkpoint with an accuracy")
    accuracy, _, best = max(found, key=lambda one: one[:2])
    of_several = f" of {len(attempts)} attempts" if len(attempts) > 1 else ""
    chosen = f"{shell_word(best.path)} (stage {best.stage}, {accuracy:.1%} on validation problems)"
    return best.path, f"checkpoint={shell_word(place)}: using the best checkpoint{of_several}, {chosen}"


def _exact(attempts: Sequence[Attempt], text: str) -> list[Attempt]:
    return _of_one(text, [one for one in attempts if text in (one.id, one.folder.signature)])


def _named(attempts: Sequence[Attempt], text: str) -> list[Attempt]:
    """The attempts of all runs with this name."""
    return [one for one in attempts if one.name == text]


def _beginning(attempts: Sequence[Attempt], text: str) -> list[Attempt]:
    found = [one for one in attempts if one.id.startswith(text) or one.folder.signature.startswith(text)]
    if found:
        return _of_one(text, found)
    names = sorted({one.name for one in attempts if one.name.startswith(text)})
    if len(names) > 1:
        raise NotFoundError(f"{text}: is ambiguous; it may be {_some(names)}")
    return _named(attempts, names[0]) if names else []


def _of_one(text: str, found: list[Attempt]) -> list[Attempt]:
    """Returns ``found`` if it has at most one attempt, or all are of the run whose signature begins with ``text``."""
    folders = {attempt.path.parent for attempt in found}
    if len(found) > 1 and (len(folders) > 1 or not found[0].folder.signature.startswith(text)):
        raise NotFoundError(f"{text}: is ambiguous; it may be {_some(shell_word(attempt.path) for attempt in found)}")
    return found


def _what_is_there(root: Path, attempts: Sequence[Attempt], text: str) -> str:
    if not attempts:
        return f"{root} holds no attempts"
    words = dict.fromkeys(word for one in reversed(attempts) for word in (one.id, one.folder.signature, one.name))
    near = difflib.get_close_matches(text, words, n=3, cutoff=0.6) or [word for word in words if text in word][:3]
    count = f"{root} holds {len(attempts)} attempt{'s' if len(attempts) > 1 else ''}"
    return f"{count}; did you mean {' or '.join(near)}?" if near else f"{count}, the newest {attempts[-1].id}"


def _some(words: Iterable[str]) -> str:
    *shown, last = list(words)
    if not shown:
        return last
    return f"{', '.join(shown)} or {last}" if len(shown) < 5 else f"{', '.join(shown[:4])} and {len(shown) - 3} more"
