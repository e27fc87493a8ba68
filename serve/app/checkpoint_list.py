"""What the app says about checkpoints: a label for lists, the facts in a sentence, and a partner to compare with."""

import time
from collections.abc import Iterable

from coconut_ds.methods import METHODS
from coconut_ds.model.card import ModelCard
from serve.app.problems import ProblemFile
from serve.checkpoints.finding import ServedCheckpoint

UNITS = (("d", "days", 86_400), ("h", "hours", 3_600), ("min", "minutes", 60))
"""Units of an age, short and in words, with their seconds."""


def choices(checkpoints: Iterable[ServedCheckpoint]) -> list[tuple[str, str]]:
    """A label and a name for each checkpoint, as a list to choose from."""
    return [(label(one), one.name) for one in checkpoints]


def label(one: ServedCheckpoint) -> str:
    """The name of a checkpoint, with its method, stage, accuracy and age, and a star if it is the best of its run."""
    parts = [f"{one.card.method} stage {one.card.stage}"]
    parts += [] if one.accuracy is None else [f"{one.accuracy:.1%}"]
    parts += [f"{_age(one)[0]} old"] if one.created else []
    return f"{'★ ' if one.is_best_of_run else ''}{one.name} · {', '.join(parts)}"


def facts(one: ServedCheckpoint) -> str:
    """The same as a sentence that can be read without knowing the list."""
    card = one.card
    number = f"{card.num_latents} {'pauses' if card.num_pauses else 'thoughts'}" if card.num_latents else "no thoughts"
    parts = [f"method {card.method}", f"stage {card.stage} of its curriculum", f"trained with {number}"]
    parts += [] if one.accuracy is None else [f"{one.accuracy:.1%} of the validation problems right"]
    parts += [f"saved {_age(one)[1]} ago"] if one.created else []
    if one.standing is not None:
        which = "best checkpoint" if one.standing.is_best else "a checkpoint other than the best"
        parts.append(f"{which} of {'a complete run' if one.standing.is_finished else 'a run that is not complete'}")
    return f"{one.name}: {', '.join(parts)}."


def _age(one: ServedCheckpoint) -> tuple[str, str]:
    """The time since the checkpoint was written, short and in words."""
    seconds = max(time.time() - one.created, 0.0)
    short, words, size = next((unit for unit in UNITS if seconds >= unit[2]), UNITS[-1])
    if seconds < size:
        return f"under 1 {short}", f"less than a {words[:-1]}"
    count = int(seconds // size)
    return f"{count} {short}", f"{count} {words if count != 1 else words[:-1]}"


def thoughts_label(card: ModelCard) -> str:
    """The label of the slider that sets the number of thoughts."""
    method = METHODS[card.method]
    if not method.has_latents:
        return f"Thoughts (none: {card.method})"
    return f"{'Pauses' if method.pauses else 'Thoughts'} (trained with {card.num_latents})"


def partner_of(
    model: str, checkpoints: Iterable[ServedCheckpoint], files: dict[str, ProblemFile], file_of: dict[str, str]
) -> str:
    """The checkpoint to compare a model with.

    It is one that was trained on the same data, and with another method if there is one: one that pauses first, then
    one without thoughts. Among equally suitable ones it is the best of its run.

    Args:
        model: name of the model.
        checkpoints: all checkpoints.
        files: files of problems by name.
        file_of: by name of a checkpoint, the name of its run's file.
    """
    known = {one.name: one for one in checkpoints}
    own, own_data = known[model], _data_of(known[model], files, file_of)

    def worth(one: ServedCheckpoint) -> tuple[bool, ...]:
        other_method = one.card.method != own.card.method
        is_same_data = own_data is not None and _data_of(one, files, file_of) == own_data
        pauses = METHODS[one.card.method].pauses
        return (
            is_same_data and other_method,
            is_same_data,
            other_method,
            pauses,
            not one.card.num_latents,
            one.is_best_of_run,
        )

    return max((one for one in known.values() if one.name != model), key=worth, default=own).name


def _data_of(one: ServedCheckpoint, files: dict[str, ProblemFile], file_of: dict[str, str]) -> object:
    """What tells the data of two checkpoints apart: the kind of data in the card, or else the problems of the run.

    None if neither is known. Of data that come from files, the card says only ``file``.
    """
    kind = one.card.provenance.get("data")
    if kind and kind != "file":
        return kind
    file = files.get(file_of.get(one.name, ""))
    return None if file is None else file.problems
