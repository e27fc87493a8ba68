"""``data.schedule``: the problems that a run trains on before those of its own data group.

Each entry is a mapping. It has the keys of ``data`` that differ, or ``group``, an option of ``config/data``, and says
when it ends: after ``epochs`` epochs, once its validation problems are mastered (``mastery``), or both, whichever comes
first. After the last entry the run trains on its own data group, which is also what it is evaluated on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Positive, Share

SCHEDULED = (
    *("kind", "train_path", "val_path", "size", "online", "num_terms", "modulus", "num_nodes", "num_layers"),
    *("num_edges", "num_symbols", "wording", "split_by", "num_hops", "balanced"),
)
"""Keys of ``data`` that an entry can set: they choose the problems. The others must be the same for the whole run."""
SHARED = ("format", "answers", "scoring", "chat_template")
"""Keys in which an option that an entry names must agree with the run's own data group."""


class _End(Group):
    """When an entry ends."""

    epochs: Positive | None = None
    mastery: Share | None = None


@dataclass(frozen=True)
class Phase:
    """One entry of ``data.schedule``."""

    data: DataConfig
    """The run's own data group with the keys of the entry."""
    epochs: int | None
    """The number of epochs after which it ends at the latest; None: no limit."""
    mastery: float | None
    """It ends once this share of its validation problems is entirely right, with all remaining steps, or once another
    ``training.advance_metric`` has this value; None: never."""


def phases_of(data: DataConfig) -> tuple[Phase, ...]:
    """The entries of ``data.schedule``, in order.

    Raises:
        ValueError: an entry has an unknown key, an invalid value, or no end; the message says which one.
    """
    own = data.model_dump(exclude={"schedule"})
    return tuple(_phase(own, entry, f"schedule[{index}]") for index, entry in enumerate(data.schedule))


def _phase(own: dict[str, Any], entry: Mapping[str, Any], where: str) -> Phase:
    keys = {key: value for key, value in entry.items() if key not in _End.model_fields}
    unknown = [key for key in keys if key not in SCHEDULED]
    if unknown:
        raise ValueError(
            f"{where}: found {', '.join(unknown)}, expected epochs, mastery, group or keys that choose problems "
            f"({', '.join(SCHEDULED)})"
        )
    size = keys.get("size")
    if isinstance(size, Mapping):
        keys["size"] = {**own["size"], **size}
    try:
        end = _End.model_validate({key: entry[key] for key in _End.model_fields if key in entry})
        data = DataConfig.model_validate({**own, **keys})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}{'.' if name else ''}{name}: {first['msg'].removeprefix('Value error, ')}") from error
    if end.epochs is None and not end.mastery:
        raise ValueError(
            f"{where}: nothing says when it ends; add epochs (for example epochs: 10), mastery (mastery: 0.95), or both"
        )
    return Phase(data, end.epochs, end.mastery)


def with_groups(
    data: Mapping[str, Any], values_of: Callable[[str], Mapping[str, Any]], names: Sequence[str]
) -> list[Any]:
    """The entries of ``schedule`` in plain values of ``data``, with the keys of the option in place of ``group``.

    Args:
        data: values of the group ``data``, before validation.
        values_of: the values of an option.
        names: of all options.

    Raises:
        ValueError: there is no such option, or it differs from ``data`` in a key that a run has only once.
    """
    return [
        _expanded(data, entry, f"schedule[{index}]", values_of, names) if _names_group(entry) else entry
        for index, entry in enumerate(data["schedule"])
    ]


def _names_group(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "group" in entry


def _expanded(
    data: Mapping[str, Any],
    entry: Mapping[str, Any],
    where: str,
    values_of: Callable[[str], Mapping[str, Any]],
    names: Sequence[str],
) -> dict[str, Any]:
    name, rest = entry["group"], {key: value for key, value in entry.items() if key != "group"}
    if name not in names:
        raise ValueError(f"{where}.group: found {name!r}, expected an option of data: {', '.join(names)}")
    option = {key: value for key, value in values_of(name).items() if key != "schedule"}
    for key in SHARED:
        default = DataConfig.model_fields[key].default
        if option.get(key, default) != data.get(key, default):
            raise ValueError(
                f"{where}.group={name}: has {key}={option.get(key, default)}, but the run has "
                f"{data.get(key, default)}, and a run has one {key}; choose another group, or set data.{key}"
            )
    # Keys that the option does not set have their defaults, not the values of the run's own group.
    whole = DataConfig.model_validate(option).model_dump(mode="json", include=set(SCHEDULED))
    size = rest.get("size")
    return {**whole, **rest, "size": {**whole["size"], **size} if isinstance(size, Mapping) else size or whole["size"]}
