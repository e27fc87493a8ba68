"""The command line of ``coconut-sweep``: from the words that a user types to those that Hydra's own command line takes.

Users write keys as for a run: without their group (``lr=1e-4,2e-4``), and with text that Hydra would not read
(``load_model_path=~/a b,~/c``). Commas separate several values of a key that holds text too; a value within quotes may
contain them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from coconut_ds.cli.completion import Words
from coconut_ds.errors import ConfigError
from coconut_ds.settings.completion import few_values, words_of_schema
from coconut_ds.settings.compose import compose_values, has_several_values, option_names
from coconut_ds.settings.config import Config
from coconut_ds.settings.overrides import NULL, Override, full_key, quoted, read_text, text_keys
from coconut_ds.settings.schema import leaf_field, leaf_keys, validated
from coconut_ds.settings.sweep import StudyConfig, SweepConfig, SweepKeys

ROW, TASK, SEED = "sweep.row", "sweep.task", "run.seed"
_TEXT_VALUE = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,])*""", re.DOTALL)
"""One of several values of a key that holds text: up to the next comma that is not within quotes."""
_WITH_VALUE = ("--config-dir", "-cd")
"""Options of Hydra that this module reads, which take their value from the next word."""


_QUESTIONS = ("--cfg", "--info", "--hydra-help", "--shell-completion")
"""Options with which Hydra answers and starts nothing."""


def sweep_words() -> Words:
    """What shells complete: the words of a training run, the studies, and what a sweep does with its runs."""
    options = option_names((), SweepKeys.model_fields)
    run = words_of_schema(Config, options)
    names, values = [name for name in run.names if not name.startswith("--help")], [*run.values]
    for key in leaf_keys(SweepConfig):
        field = leaf_field(SweepConfig, key)
        names.append(f"{key}=")
        values += [f"{key}={value}" for value in few_values(field.annotation, field.metadata)]
    values += [f"study={name}" for name in options["study"]]
    return Words([*names, "study=", "--multirun", "--table", "--hydra-help"], values)


@dataclass(frozen=True)
class SweepLine:
    """A command line of ``coconut-sweep``."""

    words: tuple[str, ...]
    """The words for Hydra."""
    sweep: SweepConfig
    study: StudyConfig
    asks_only: bool = False
    """Whether it asks Hydra for information and starts no runs."""


def read_line(argv: Sequence[str]) -> SweepLine:
    """Translates a command line.

    Raises:
        ConfigError: a key, an option of a group, a row or a task is unknown.
    """
    folders = _config_dirs(argv)
    groups = option_names(folders, SweepKeys.model_fields)
    # Hydra reads overrides only where no option stands between them.
    options = [word for word in argv if _is_option(word)]
    words: dict[str, str] = {}
    single: list[str] = []
    varied: list[str] = []
    for word in argv:
        if _is_option(word):
            continue
        if word.lstrip("+").startswith(("hydra.", "hydra/")):
            words[Override.read(word).key] = word
            continue
        if word.startswith("~"):
            raise ConfigError(f"{word}: keys cannot be deleted; set a value instead")
        translated, key, has_several = _translated(word, groups)
        words[key] = translated
        (varied if has_several else single).append(key if has_several else word)
    values = compose_values("sweep", SweepKeys, single, folders)
    sweep = validated(SweepConfig, values["sweep"])
    study = validated(StudyConfig, values.get("study") or {})
    own = (key for key in varied if key == "study" or key.startswith(("sweep.", "study.")))
    if fixed := [key for key in own if key not in (ROW, TASK)]:
        raise ConfigError(f"{fixed[0]}: found several values, expected one; start one sweep for each value")
    if any(option in ("-c", "-i") or option.startswith(_QUESTIONS) for option in options):
        # Hydra composes one configuration to answer these.
        return SweepLine((*(words[key] for key in words if key not in varied), *options), sweep, study, asks_only=True)
    words = {**_study_words(study, words), **words}
    _check_names(study, words)
    listed = ",".join(key for key in varied if key not in (ROW, TASK, SEED))
    # Other processes, which may run elsewhere, read the same folders.
    searched = ",".join(quoted(str(Path(folder).resolve())) for folder in folders)
    more = (f"++sweep.varied=[{listed}]", f"++sweep.config_dirs=[{searched}]")
    return SweepLine((*words.values(), *more, *options), sweep, study)


def _is_option(word: str) -> bool:
    """Whether a word is an option of Hydra's command line, or the value of one."""
    return word.startswith("-") or ("=" not in word and not word.startswith("~"))


def _config_dirs(argv: Sequence[str]) -> list[str]:
    after = [word for option, word in pairwise(argv) if option in _WITH_VALUE]
    return [*after, *(word.partition("=")[2] for word in argv if word.startswith(f"{_WITH_VALUE[0]}="))]


def _translated(word: str, groups: dict[str, list[str]]) -> tuple[str, str, bool]:
    """A word in Hydra's grammar, its full key, and whether it has several values."""
    one = Override.read(word)
    if one.key in groups:
        has_several = has_several_values(one)
        if not has_several and one.value not in groups[one.key]:
            names = ", ".join(groups[one.key])
            raise ConfigError(f"{word}: no such option; expected one of {names}")
        return f"{one.key}={one.value}", one.key, has_several
    key = full_key(one, SweepKeys)
    texts = text_keys(SweepKeys)
    if key not in texts:
        return f"++{key}={one.value}", key, has_several_values(one)
    values = text_values(one.value or "", texts[key])
    return f"++{key}={','.join(values)}", key, len(values) > 1


def text_values(value: str, nullable: bool) -> list[str]:
    """The values of a key that holds text, each in quotes, or null."""
    values: list[str] = []
    position = 0
    while position <= len(value):
        match = _TEXT_VALUE.match(value, position)
        assert match is not None
        text = read_text(match[0], nullable)
        values.append(NULL if text is None else quoted(text))
        position = match.end() + 1
    return values


def _study_words(study: StudyConfig, given: Collection[str]) -> dict[str, str]:
    """The words for what the user leaves to the study: its tasks, seeds and rows."""
    everything = {
        TASK: [quoted(name) for name in study.tasks],
        SEED: list(map(str, study.seeds)) if study.rows else [],
        ROW: [quoted(name) for name in study.rows],
    }
    return {key: f"++{key}={','.join(values)}" for key, values in everything.items() if values and key not in given}


def _check_names(study: StudyConfig, words: Mapping[str, str]) -> None:
    """Refuses rows and tasks that the study does not have."""
    for key, names in ((ROW, study.rows), (TASK, study.tasks)):
        value = Override.read(words.get(key, "")).value
        for name in [] if value is None else map(_unquoted, text_values(value, nullable=True)):
            if name not in names:
                has = ", ".join(names) or "none; choose a study with study=NAME"
                raise ConfigError(f"{key}={name}: no such name; the study has {has}")


def _unquoted(value: str) -> str | None:
    return read_text(value, nullable=True)
