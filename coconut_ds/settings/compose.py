"""Turns a command line into a validated configuration.

Hydra composes the files of ``config/`` and applies overrides in its own syntax (``group=option``, ``group.key=value``):
see ``composition``.
In addition, the name of the group may be left out: ``lr=1e-5`` means ``training.lr=1e-5``, because exactly one group
has this key. Values of keys that hold text are taken literally (see ``overrides``). ``--local_rank``, which the
DeepSpeed launcher adds, is ignored: the rank is read from the environment.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coconut_ds.cli.common import take_common
from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config, EvalConfig, ProbeConfig
from coconut_ds.settings.completion import words_of_schema
from coconut_ds.settings.composition import SETS, chosen_options, composed, option_files, parsed
from coconut_ds.settings.data_schedule import with_groups
from coconut_ds.settings.evaluation import SWEPT
from coconut_ds.settings.help import all_keys_help, group_help, short_help
from coconut_ds.settings.overrides import (
    Override,
    TextValues,
    full_key,
    read_text,
    several_options,
    several_values,
    text_override,
)
from coconut_ds.settings.probing import FREE_TEXT
from coconut_ds.settings.schema import subgroups, to_yaml, validated

CHECKPOINT_EXAMPLE = "outputs/…/checkpoint_50"


def parse_arguments(
    argv: Sequence[str], schema: type[BaseModel], usage: str, program: str = "coconut-train"
) -> argparse.Namespace:
    """Splits a command line into this program's options (``.cfg``, ``.config_dir``) and overrides (``.overrides``).

    Sets up the log. ``--help``, ``--help=GROUP``, ``--help-all``, ``--version`` and ``--completion`` print their text
    and exit with code 0.

    Args:
        argv: the command line.
        schema: class of the configuration.
        usage: how the program is called.
        program: the name under which it is installed.

    Raises:
        ConfigError: an option is unknown, or has a value that it does not take.
    """
    argv = take_common(argv, program, lambda: words_of_schema(schema, option_names()))
    _answer_help(argv, schema, usage)
    parser = argparse.ArgumentParser(usage=usage.replace("%", "%%"), add_help=False)
    parser.add_argument("--cfg", action="store_true")
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--local_rank", "--local-rank")
    parser.add_argument("overrides", nargs="*")
    known, rest = parser.parse_known_intermixed_args(_without_cfg_values(argv))
    if {"-m", "--multirun"} & set(rest):
        raise ConfigError(
            "--multirun: every launch is one run with its own processes; start one command per run, or let "
            "coconut-sweep do it: coconut-sweep -m method=coconut,pause run.seed=0,1,2"
        )
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; expected group=option, key=value, --cfg, --config-dir or --help")
    return known


def _answer_help(argv: Sequence[str], schema: type[BaseModel], usage: str) -> None:
    """Prints the text that the first help option requests, and exits; returns where there is none."""
    for word in argv:
        if word in ("-h", "--help"):
            text = short_help(schema, usage, option_names())
        elif word.startswith("--help="):
            text = group_help(schema, word.removeprefix("--help="), option_names())
        elif word == "--help-all":
            text = all_keys_help(schema, usage, option_names())
        else:
            continue
        sys.stdout.write(text)
        raise SystemExit(0)


def _without_cfg_values(argv: Sequence[str]) -> list[str]:
    """Replaces ``--cfg job``, the spelling of Hydra's own command line, by ``--cfg``. Keeps an override after it."""
    words: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = before == "--cfg" and "=" not in word and not word.startswith(("-", "+", "~"))
        if not is_value and not word.startswith("--cfg="):
            words.append(word)
            continue
        value = word.removeprefix("--cfg=")
        if value != "job":
            raise ConfigError(f"--cfg {value}: expected --cfg or --cfg job, which print the run's configuration")
        words += [] if is_value else ["--cfg"]
    return words


def compose_config(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Config:
    """The configuration of a training run.

    Args:
        overrides: ``group=option`` or ``key=value``.
        config_dirs: further folders to search for options.

    Raises:
        ConfigError: an override is malformed, unknown or ambiguous, or the resulting values cannot work together.
    """
    values = compose_values("config", Config, overrides, config_dirs)
    given = {Override.read(word).key.rsplit(".", 1)[-1] for word in overrides}
    own = "gradient_accumulation_steps" in given and values["training"].get("gradient_accumulation_steps") is not None
    if own and "global_batch_size" not in given:
        # The user's accumulation overrides the preset's global batch size, which is then computed from it.
        values["training"]["global_batch_size"] = None
    _expand_schedule(values["data"], config_dirs)
    return Config.from_dict(values)


def _expand_schedule(data: dict[str, Any], config_dirs: Sequence[str]) -> None:
    """Puts the keys of data groups in place of their names in ``data.schedule``."""

    def values_of(name: str) -> dict[str, Any]:
        return compose_values("config", Config, [f"data={name}"], config_dirs)["data"]

    if not data.get("schedule"):
        return
    try:
        data["schedule"] = with_groups(data, values_of, option_names(config_dirs)["data"])
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error


def compose_eval_config(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> EvalConfig:
    """The configuration of an evaluation. ``data=`` takes an option of the group, or the path of a problem file.

    Raises:
        ConfigError: an override is unknown, or the checkpoint or the data is missing.
    """
    _require(overrides, {"checkpoint": CHECKPOINT_EXAMPLE, "data": "prosqa_eval, or data=FILE.json"})
    swept = [_bracketed(word) for word in overrides]
    expanded, data_name = _with_data_file(swept, config_dirs)
    values = compose_values("evaluate", EvalConfig, expanded, config_dirs)
    return validated(EvalConfig, {**values, "data_name": data_name})


def compose_probe_config(mode: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> ProbeConfig:
    """The configuration of a probing run. ``data=`` takes an option of the group, or the path of a problem file.

    Args:
        mode: a key of ``MODES``.
        overrides: ``group=option`` or ``key=value``.
        config_dirs: further folders to search for options.

    Raises:
        ConfigError: an override is unknown, or the checkpoint is missing.
    """
    _require(overrides, {"checkpoint": CHECKPOINT_EXAMPLE})
    given = [Override.read(word) for word in overrides]
    free: dict[str, Any] = {one.key: one.value for one in given if one.key in FREE_TEXT and one.value is not None}
    if "tokens" in free:
        free["tokens"] = tuple(token.strip() for token in free["tokens"].split(","))
    expanded, data_name = _with_data_file([one.word for one in given if one.key not in free], config_dirs)
    values = compose_values("probe", ProbeConfig, expanded, config_dirs)
    return validated(ProbeConfig, {**values, **free, "data_name": data_name, "mode": mode})


def _require(overrides: Sequence[str], examples: dict[str, str]) -> None:
    """Raises a ``ConfigError`` if a key of ``examples`` is not set; the message shows its example value."""
    given = {Override.read(word).key for word in overrides}
    for key, example in examples.items():
        if key not in given:
            raise ConfigError(f"{key}: missing; set {key}={example}")


def _bracketed(word: str) -> str:
    """Writes several numbers of thoughts (``n_thoughts=0,1,2``) as Hydra's list (``n_thoughts=[0,1,2]``)."""
    one = Override.read(word)
    several = one.key in SWEPT and one.value is not None and "," in one.value and not one.value.startswith("[")
    return f"{one.key}=[{one.value}]" if several and "(" not in word else word


def _with_data_file(overrides: Sequence[str], config_dirs: Sequence[str]) -> tuple[list[str], str]:
    """Replaces ``data=FILE`` by the keys that describe a file.

    Returns:
        The overrides, and a name for the data; "" if none is chosen.
    """
    expanded: list[str] = []
    data_name = ""
    for word in overrides:
        one = Override.read(word)
        if one.key != "data" or one.value is None:
            expanded.append(word)
            continue
        value = read_text(one.value, nullable=False) or ""
        names = option_names(config_dirs)["data"]
        data_name = Path(value).stem
        if value in names:
            expanded.append(f"data={value}")
        elif Path(value).is_file():
            expanded += ["data.kind=file", text_override("data.test_path", value)]
        else:
            raise ConfigError(
                f"data={value}: no such file and no such option; expected a file or one of {', '.join(names)}"
            )
    return expanded, data_name


def compose_values(
    root: str, schema: type[BaseModel], overrides: Sequence[str], config_dirs: Sequence[str] = ()
) -> dict[str, Any]:
    """Composes ``config/<root>.yaml`` and overrides to plain values.

    Keys and options are checked against ``schema`` and the existing files; values are not validated yet.

    Raises:
        ConfigError: a folder of ``config_dirs`` does not exist, or an override is malformed, unknown or ambiguous.
    """
    absent = [folder for folder in config_dirs if not Path(folder).is_dir()]
    if absent:
        raise ConfigError(f"--config-dir {absent[0]}: no such folder; expected one with group folders such as data/")
    own_groups = subgroups(schema)
    groups = option_names(config_dirs, own_groups)
    texts = TextValues(schema)
    resolved: list[str] = []
    for one in map(Override.read, overrides):
        words = None if one.key in groups else texts.take(one)
        resolved += [_resolved(one, schema, groups)] if words is None else words
    return texts.put_back(composed(root, resolved, config_dirs))


def chosen_option(group: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> str:
    """The option of a group in the configuration of a training run.

    It is what ``group=option`` says, or the option of another group (``run=quick`` chooses the data), or the default.
    """
    groups = option_names(config_dirs)
    choices = [word for word in overrides if Override.read(word).key in groups]
    return chosen_options("config", choices, config_dirs)[group]


def option_names(
    config_dirs: Sequence[str] = (), groups: Collection[str] = Config.model_fields
) -> dict[str, list[str]]:
    """Each of the groups with the names of its options: the YAML files of ``config/`` and ``config_dirs``."""
    found: dict[str, set[str]] = {}
    for path in option_files(config_dirs):
        if path.parent.name in groups:
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def _resolved(override: Override, schema: type[BaseModel], groups: dict[str, list[str]]) -> str:
    """Translates one override to Hydra's syntax, with the full name of the key."""
    key, value, has_several = override.key, override.value, has_several_values(override)
    if key in groups:
        if has_several:
            raise several_options(override, groups[key])
        if value not in groups[key]:
            raise ConfigError(f"{key}={value}: no such option; expected one of {', '.join(groups[key])}")
        return f"{key}={value}"
    known = full_key(override, schema)
    if has_several:
        raise several_values(override, known, schema)
    return f"{SETS}{known}={value}"


def has_several_values(override: Override) -> bool:
    """Whether Hydra makes several runs of an override: ``1,2``, ``range(1,4)``, ``interval(0,1)``, ``choice(a,b)``.

    Raises:
        ConfigError: the override cannot be read, or deletes a key.
    """
    read = parsed(override.word, override.key)
    if read.is_delete():
        raise ConfigError(f"{override.word}: keys cannot be deleted; set a value instead")
    return bool(read.is_sweep_override())


def print_config(config: BaseModel) -> None:
    """Writes the configuration to standard output as YAML."""
    sys.stdout.write(to_yaml(config))
