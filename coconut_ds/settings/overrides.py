"""The overrides of a command line: the key that each one sets, and the values of keys that hold text.

The value of a key of type ``str`` is everything after the first ``=``, character by character: spaces, quotes, ``=``,
brackets, backslashes, ``$`` and ``~`` have no meaning in it, and digits stay as they are written. There are two
exceptions, both as in Hydra's grammar. ``null``, in small or capital letters, means no value, where the key allows
that. And a value that is entirely in quotes loses them, so ``'null'`` is the text null. `compose` passes the values of
all other keys to Hydra.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import uuid4

from pydantic import BaseModel

from coconut_ds.errors import ConfigError
from coconut_ds.settings.help import expected_values
from coconut_ds.settings.schema import leaf_field, leaf_keys

NULL = "null"
"""How a command line writes that a key has no value."""
_QUOTED = re.compile(r"""(['"])(?P<inner>(?:\\.|(?!\1)[^\\])*)\1""", re.DOTALL)
"""A text that is entirely in quotes; a backslash may precede a quote inside."""


@dataclass(frozen=True)
class Override:
    """One word of a command line, ``key=value``."""

    word: str
    """The word as the user wrote it."""
    key: str
    """The text before the first ``=``, without Hydra's prefix ``+`` or ``++``."""
    value: str | None
    """The text after the first ``=``; None if the word has no ``=``."""

    @classmethod
    def read(cls, word: str) -> "Override":
        """Splits a word at its first ``=``."""
        key, equals, value = word.partition("=")
        return cls(word, key.lstrip("+"), value if equals else None)


def text_override(key: str, text: object) -> str:
    """The override that sets ``key``, which is of type ``str``, to exactly this text. The inverse of ``read_text``."""
    value = str(text)
    ambiguous = value.lower() == NULL or _QUOTED.fullmatch(value) is not None
    return f"{key}={quoted(value) if ambiguous else value}"


def quoted(text: str) -> str:
    """A text in quotes, which may contain any character, in Hydra's grammar."""
    # Backslashes only need to be doubled before a quote and at the end.
    inner = re.sub(r"(\\+)\Z", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", text))
    return f"'{inner}'"


def read_text(value: str, nullable: bool) -> str | None:
    """The text, or no text, that a value on the command line stands for.

    Args:
        value: what follows the first ``=``.
        nullable: whether the key may be null.
    """
    if nullable and value.lower() == NULL:
        return None
    match = _QUOTED.fullmatch(value)
    if match is None:
        return value
    quote = match[1]
    inner = re.sub(rf"(\\*)\\{quote}", lambda found: "\\" * (len(found[1]) // 2) + quote, match["inner"])
    return re.sub(r"\\+\Z", lambda found: "\\" * (len(found[0]) // 2), inner)


def text_keys(schema: type[BaseModel]) -> dict[str, bool]:
    """The dotted keys of type ``str``, each with whether it may be null."""
    kinds = {key: leaf_field(schema, key).annotation for key in leaf_keys(schema)}
    return {key: NoneType in get_args(kind) for key, kind in kinds.items() if _is_text(kind)}


def _is_text(kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_text(parts[0])
    if origin in (Union, UnionType):
        return all(part is NoneType or _is_text(part) for part in parts)
    if origin is Literal:
        return all(isinstance(part, str) for part in parts)
    return kind is str


def full_key(override: Override, schema: type[BaseModel]) -> str:
    """The key with its group: ``lr`` becomes ``training.lr``.

    Raises:
        ConfigError: no group has this key, or several have it.
    """
    key, value, keys = override.key, override.value, leaf_keys(schema)
    # Keys inside a mapping (model.model_config_overrides.n_layer) are not fields of the schema.
    if key in keys or any(key.startswith(f"{known}.") for known in keys):
        return key
    # A nested group (data.size) may be set as a whole.
    inner = {known.rsplit(".", 1)[0] for known in keys if known.count(".") > 1}
    if key in inner:
        return key
    candidates = [known for known in [*keys, *sorted(inner)] if known.split(".", 1)[-1] == key]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ConfigError(f"{key}={value}: several groups have this key; set one of {', '.join(candidates)}")
    near = _similar(key, keys)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; --help-all lists all keys"
    raise ConfigError(f"{key}={value}: no group has this key{hint}")


def _similar(key: str, keys: Sequence[str]) -> list[str]:
    """Up to three keys that the user may have meant, as they can be typed."""
    # By their full names, and by their last parts; a key of a nested group (grpo.beta) needs the group's name.
    typed: dict[str, list[str]] = {}
    for known in keys:
        short = known.split(".", 1)[-1]
        for name in {known, known.split(".")[-1]}:
            typed.setdefault(name, []).append(known if name == known else short)
    near = difflib.get_close_matches(key, typed, n=3, cutoff=0.5)
    return list(dict.fromkeys(each for name in near for each in typed[name]))[:3]


class TextValues:
    """The values of keys that hold text, which Hydra must neither parse nor interpolate.

    Args:
        schema: the configuration that has the keys.
    """

    def __init__(self, schema: type[BaseModel]) -> None:
        self._schema, self._keys = schema, text_keys(schema)
        self._ungrouped: dict[str, str | None] = {}
        self._by_word: dict[str, str] = {}

    def take(self, override: Override) -> list[str] | None:
        """Keeps the value of an override whose key holds text.

        Returns:
            The overrides that Hydra gets in its place; None if the key holds no text.

        Raises:
            ConfigError: no group has this key, or several have it.
        """
        if override.value is None or override.key.startswith("~"):
            return None
        key = full_key(override, self._schema)
        if key not in self._keys:
            return None
        text = read_text(override.value, self._keys[key])
        if "." not in key:
            # Hydra would take `method=…`, a key of an evaluation, for an option of the group config/method.
            self._ungrouped[key] = text
            return []
        if text is None:
            return [f"++{key}={NULL}"]
        word = f"text_{uuid4().hex}"
        self._by_word[word] = text
        return [f"++{key}={word}"]

    def put_back(self, values: dict[Any, Any]) -> dict[str, Any]:
        """The composed values, with the texts in the places of the words that Hydra got for them."""
        return {**{str(key): self._filled(value) for key, value in values.items()}, **self._ungrouped}

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._filled(inner) for inner in value]
        if isinstance(value, str):
            # A file may interpolate the key, so the word may be a part of the value.
            for word in [word for word in self._by_word if word in value]:
                value = value.replace(word, self._by_word[word])
        return value


def several_values(override: Override, key: str, schema: type[BaseModel]) -> ConfigError:
    """The error for a value such as ``1e-4,2e-4`` or ``range(1,3)``, which Hydra would turn into several runs.

    Args:
        override: the override with this value.
        key: the key with its group.
        schema: the configuration that has the key.
    """
    # Keys inside a mapping take any value.
    field = leaf_field(schema, key) if key in leaf_keys(schema) else None
    expected = expected_values(field.annotation, field.metadata) if field is not None else "a value or a list"
    found = f"{override.key}={override.value}: found several values, expected "
    if "list" not in expected and "[" not in expected:
        return ConfigError(f"{found}one ({expected}); start one command for each value, or use coconut-sweep")
    example = f"{override.key}=[{override.value}]" if "(" not in (override.value or "") else f"{override.key}=[1,2]"
    return ConfigError(f"{found}{expected}; write a list in brackets, such as '{example}'")


def several_options(override: Override, names: Sequence[str]) -> ConfigError:
    """The error for several options of a group, such as ``method=coconut,cot``."""
    return ConfigError(
        f"{override.key}={override.value}: found several options, expected one of {', '.join(names)}; start one "
        "command for each option, or use coconut-sweep"
    )
