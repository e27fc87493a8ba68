"""The words that a shell completes on the command lines that Hydra composes: groups, keys, and their values."""

from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel

from coconut_ds.cli.completion import Words
from coconut_ds.settings.help import PROGRAMS, help_names
from coconut_ds.settings.schema import leaf_field, leaf_keys, subgroups
from coconut_ds.settings.types import NameIn


def words_of_schema(schema: type[BaseModel], options: Mapping[str, Sequence[str]]) -> Words:
    """Groups with their options, all keys by their full names, and the most used ones without their group.

    Args:
        schema: class of the configuration, a key of ``PROGRAMS``.
        options: each group and the names of its options.
    """
    groups, keys = subgroups(schema), leaf_keys(schema)
    short = {key.split(".", 1)[-1]: key for key in PROGRAMS[schema].common}
    full = {**{key: key for key in keys}, **short}
    names = [*(f"{group}=" for group in groups), *(f"{name}=" for name in full)]
    values = [f"{group}={option}" for group in groups for option in options[group]]
    for name, key in full.items():
        field = leaf_field(schema, key)
        values += [f"{name}={value}" for value in few_values(field.annotation, field.metadata)]
    more = [*(f"--help={name}" for name in help_names(schema)), "--help-all", "--cfg", "--config-dir"]
    return Words([*names, *more], values)


def few_values(annotation: Any, metadata: Iterable[Any] = ()) -> list[str]:
    """The values of a type that has only a few; an empty list for others, such as numbers and paths."""
    for fact in metadata:
        if isinstance(fact, AfterValidator) and isinstance(fact.func, NameIn):
            return sorted(fact.func.registry)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return few_values(parts[0], parts[1:])
    if origin is Literal:
        return [str(part) for part in parts]
    if origin in (Union, UnionType):
        return [value for part in parts for value in few_values(part)]
    return ["true", "false"] if annotation is bool else []
