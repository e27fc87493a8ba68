"""What all configurations share: frozen groups that refuse unknown keys, readable errors, access by key, and YAML."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from coconut_ds.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


class Group(BaseModel):
    """Base class of a group of keys. Instances are immutable, and unknown keys are an error."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
    )


def validated(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Creates an instance of ``schema`` from plain values.

    Raises:
        ConfigError: values are invalid; one line per error, with the key, the value found and what was expected.
    """
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


def leaf_field(schema: type[BaseModel], key: str) -> FieldInfo:
    """The field of a dotted key such as ``data.size.train``.

    Raises:
        KeyError: the schema has no such key.
    """
    first, _, rest = key.partition(".")
    return leaf_field(subgroups(schema)[first], rest) if rest else schema.model_fields[first]


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema, those of nested groups included."""
    groups = subgroups(schema)
    keys: list[str] = []
    for name in schema.model_fields:
        keys += leaf_keys(groups[name], f"{prefix}{name}.") if name in groups else [f"{prefix}{name}"]
    return keys


def value_of(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in nested mappings."""
    first, _, rest = key.partition(".")
    return value_of(values[first], rest) if rest else values[first]


@cache
def subgroups(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields that hold a group, or may hold one (``ModelConfig | None``), each with the group's class."""
    found = {}
    for name, field in schema.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        groups = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if groups:
            found[name] = groups[0]
    return found


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML might take for a number."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """Quotes ``1e5``, which is text for PyYAML and a number for YAML 1.2 and Hydra."""
        with suppress(ValueError):
            float(text.replace("_", ""))
            return self.represent_scalar("tag:yaml.org,2002:str", text, style="'")
        return super().represent_str(text)


_Dumper.add_representer(str, _Dumper.represent_str)


def to_yaml(config: BaseModel) -> str:
    """The configuration as YAML, which reads back as the same values."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
