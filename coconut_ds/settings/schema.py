"""Typed groups of keys: what all configurations share. Frozen, strict about names, their errors readable."""

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from coconut_ds.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


class Group(BaseModel):
    """A group of keys: immutable, and strict about names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), coerce_numbers_to_str=True
    )


def validated(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """``schema`` from plain values; pydantic's findings become one readable ConfigError."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = []
        for issue in error.errors(include_url=False):
            where = ".".join(str(part) for part in issue["loc"]) or "configuration"
            message = issue["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(issue["input"], (dict, BaseModel)) else f" found {issue['input']!r},"
            lines.append(f"{where}:{shown} {message}")
        raise ConfigError("\n".join(lines)) from error


def describe_key(schema: type[BaseModel], key: str) -> str:
    """What stands below the field of a dotted key."""
    first, _, rest = key.partition(".")
    field = schema.model_fields[first]
    group = _group_of(field.annotation)
    return describe_key(group, rest) if rest and group is not None else field.description or ""


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema, nested groups included."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        group = _group_of(field.annotation)
        keys += [f"{prefix}{name}"] if group is None else leaf_keys(group, f"{prefix}{name}.")
    return keys


def _group_of(annotation: Any) -> type[BaseModel] | None:
    """The group that a field holds, or may hold; None for a plain value."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
