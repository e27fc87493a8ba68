"""The texts that ``--help``, ``--help=GROUP`` and ``--help-all`` print, made from the schema of a configuration.

The description of a key is the docstring below its field in this package. `compose` reads the command line and prints
these texts.
"""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from coconut_ds.cli.completion import SHELLS
from coconut_ds.cli.logs import LEVELS
from coconut_ds.errors import ConfigError
from coconut_ds.settings.config import Config
from coconut_ds.settings.evaluation import EvalConfig
from coconut_ds.settings.probing import ProbeConfig
from coconut_ds.settings.schema import leaf_field, leaf_keys, subgroups
from coconut_ds.settings.types import NameIn

Options = Mapping[str, Sequence[str]]
"""Each group and the names of its options, which are the files of ``config/GROUP``."""
WIDTH = 100
"""Columns of the printed text."""
FEW = 24
"""Columns for the values that a key takes, in ``--help``; the group's own help has all."""


@dataclass(frozen=True)
class Program:
    """What the help of one program shows."""

    common: tuple[str, ...]
    """The most used keys, which ``--help`` shows."""
    ungrouped: str | None = None
    """The name under which ``--help=NAME`` shows the keys that belong to no group; None if every key has a group."""


PROGRAMS: dict[type[BaseModel], Program] = {
    Config: Program(
        common=(
            "run.save_path",
            "run.seed",
            "run.bf16",
            "run.load_model_path",
            "data.train_path",
            "data.val_path",
            "model.tokenizer",
            "training.c_thought",
            "training.max_latent_stage",
            "training.epochs_per_stage",
            "training.num_epochs",
            "training.lr",
            "training.global_batch_size",
            "training.batch_size_training",
        ),
    ),
    EvalConfig: Program(
        common=(
            "checkpoint",
            "method",
            "n_thoughts",
            "force_text_after",
            "temperature",
            "batch_size",
            "bf16",
            "seed",
            "out",
            "overwrite",
            "data.max_new_tokens",
        ),
        ungrouped="evaluate",
    ),
    ProbeConfig: Program(
        common=(
            "checkpoint",
            "question",
            "problem",
            "n_thoughts",
            "top_k",
            "tokens",
            "thought",
            "kind",
            "strength",
            "num_problems",
            "bf16",
            "seed",
            "out",
            "overwrite",
        ),
        ungrouped="probe",
    ),
}
"""The programs, by the class of their configuration."""


def short_help(schema: type[BaseModel], usage: str, options: Options) -> str:
    """One screen: usage, groups with their options, the most used keys with defaults and values, and options."""
    program = PROGRAMS[schema]
    titles = {key: _title(key, leaf_field(schema, key)) for key in program.common}
    column = max(map(len, titles.values())) + 4
    lines = [*_usage_lines(usage), "", "Groups (group=option):"]
    lines += [line for group in subgroups(schema) for line in _two_lines(group, options[group])]
    lines += ["", "Most used keys, with their defaults (key=value; the group's name may be left out):"]
    for key, title in titles.items():
        field = leaf_field(schema, key)
        summary = " ".join((field.description or "").split()).split(". ")[0].removesuffix(".")
        text = f"({_few(expected_values(field.annotation, field.metadata))}) {summary}"
        lines.append(f"  {title}".ljust(column) + textwrap.shorten(text, WIDTH - column, placeholder=" …"))
    lines += ["An option of a group may set other values than these defaults; --cfg shows the result."]
    return "\n".join([*lines, *_option_lines(schema)]) + "\n"


def group_help(schema: type[BaseModel], group: str, options: Options) -> str:
    """Every key of one group with its allowed values, its default and its meaning.

    Raises:
        ConfigError: there is no such group; names those that there are.
    """
    groups = subgroups(schema)
    if group in groups:
        keys = [key for key in leaf_keys(schema) if key.startswith(f"{group}.")]
        lines = [*_wrapped(f"{group}: {groups[group].__doc__}", 0)]
        lines += _wrapped(f"options ({group}=option): {', '.join(options[group])}", 0)
    elif group in help_names(schema):
        keys = [key for key in leaf_keys(schema) if key.split(".")[0] not in groups]
        lines = [f"{group}: the keys that belong to no group"]
    else:
        raise ConfigError(f"--help={group}: no such group; expected one of {', '.join(help_names(schema))}")
    return "\n".join([*lines, *_key_lines(schema, keys)]) + "\n"


def schema_help(schema: type[BaseModel]) -> str:
    """Every key of a schema without groups, with its allowed values, its default and its meaning."""
    return "\n".join(_key_lines(schema, leaf_keys(schema))) + "\n"


def _key_lines(schema: type[BaseModel], keys: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for key in keys:
        field = leaf_field(schema, key)
        allowed = expected_values(field.annotation, field.metadata)
        required = "; required" if field.is_required() else ""
        lines += ["", *_wrapped(f"{_title(key, field)} ({allowed}{required})", 2)]
        lines += _wrapped(field.description or "", 6, hanging=0)
    return lines


def all_keys_help(schema: type[BaseModel], usage: str, options: Options) -> str:
    """Every group with its options, and every key with its meaning, one per line."""
    lines = [*_usage_lines(usage), "", "Groups (group=option):"]
    lines += [f"  {group}: {', '.join(names)}" for group, names in options.items() if group in schema.model_fields]
    lines += ["", "Keys (key=value; the group's name may be left out):"]
    lines += [f"  {key}: {' '.join((leaf_field(schema, key).description or '').split())}" for key in leaf_keys(schema)]
    return "\n".join([*lines, *_option_lines(schema)]) + "\n"


def expected_values(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The values that a type allows, in words: ``integer ≥ 1 or null``."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected_values(parts[0], parts[1:])
    facts = list(_flattened(metadata))
    for fact in facts:
        if isinstance(fact, AfterValidator) and isinstance(fact.func, NameIn):
            return ", ".join(sorted(fact.func.registry))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, UnionType):
        return ", or ".join(map(expected_values, parts))
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {expected_values(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(map(expected_values, parts))}]"
    if origin is dict:
        return "mapping"
    plain = {bool: "true, false", int: "integer", float: "number", str: "text", NoneType: "null"}[annotation]
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [f"{sign} {getattr(fact, name)}" for fact in facts for name, sign in signs.items() if hasattr(fact, name)]
    return " ".join([plain, " and ".join(bounds)]).strip()


def _flattened(metadata: Iterable[Any]) -> Iterable[Any]:
    """Pydantic keeps constraints either directly or in the ``metadata`` of a ``Field(...)``."""
    for fact in metadata:
        yield from fact.metadata if isinstance(fact, FieldInfo) else [fact]


def _usage_lines(usage: str) -> list[str]:
    first, *others = usage.splitlines()
    return [*_wrapped(f"usage: {first}", 0), *(line for other in others for line in _wrapped(other, 2, hanging=0))]


def _two_lines(group: str, names: Sequence[str]) -> list[str]:
    """The options of a group, as many as two lines hold; the group's own help has all."""
    lines = _wrapped(f"{group}: {', '.join(names)}", 2)
    for count in range(len(names) - 1, 0, -1):
        if len(lines) <= 2:
            break
        lines = _wrapped(f"{group}: {', '.join(names[:count])}, … (all: --help={group})", 2)
    return lines


def _few(values: str) -> str:
    """The values that a key takes, shortened where there are many."""
    parts = values.split(", ")
    return values if len(values) <= FEW else f"{', '.join(parts[:2])}, …"


def _option_lines(schema: type[BaseModel]) -> list[str]:
    return [
        "",
        "Options:",
        f"  --help=GROUP, --help-all  keys of {', '.join(help_names(schema))}, or all",
        "  --cfg [job]               print the configuration that this command line gives, and stop",
        "  --config-dir DIR          also search DIR for options: DIR/training/mine.yaml is training=mine",
        f"  -v, --log-level=LEVEL     show libraries' messages; least severe: {', '.join(LEVELS)}",
        f"  --version, --completion=SHELL  versions; a script that completes arguments ({', '.join(SHELLS)})",
    ]


def help_names(schema: type[BaseModel]) -> list[str]:
    """The names that ``--help=NAME`` accepts."""
    ungrouped = PROGRAMS[schema].ungrouped
    return [*([ungrouped] if ungrouped else []), *subgroups(schema)]


def _title(key: str, field: FieldInfo) -> str:
    """``key=default``, or only the key where it has no default."""
    if field.is_required():
        return key
    value = field.get_default(call_default_factory=True)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"{key}={text or repr(text)}"


def _wrapped(text: str, indent: int, hanging: int = 4) -> list[str]:
    first, later = " " * indent, " " * (indent + hanging)
    flat = " ".join(text.split())
    return textwrap.wrap(
        flat, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
