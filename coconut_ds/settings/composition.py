"""Composes the files of ``config/`` with Hydra, and sets keys. The only module that imports Hydra and OmegaConf."""

import copy
import threading
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from coconut_ds.errors import ConfigError
from coconut_ds.files import project_folder
from coconut_ds.settings.overrides import quoted

SETS = "++"
"""How an override begins that sets a key; others choose the option of a group."""
_COMPOSING = threading.Lock()
"""Hydra keeps global state, so only one thread may compose at a time."""


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parsed(word: str, key: str) -> Override:
    """One override of a key, read by Hydra's grammar.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return _parser().parse_override(word)
    except HydraException as error:
        raise ConfigError(
            f"{word}: cannot be read; expected group=option or key=value (quote special characters)"
        ) from error
    except ValueError as error:
        # Python refuses to read numbers of thousands of digits.
        raise ConfigError(f"{key}: cannot be read: {error}") from error


def option_files(config_dirs: Sequence[str] = ()) -> Iterator[Path]:
    """The YAML files of all groups, in ``config/`` and in further folders."""
    for folder in (project_folder("config"), *map(Path, config_dirs)):
        yield from folder.glob("*/*.yaml")


def composed(root: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[Any, Any]:
    """The plain values of ``config/<root>.yaml`` with overrides in Hydra's syntax.

    Args:
        root: name of the file.
        overrides: ``group=option`` and ``++key=value``.
        config_dirs: further folders to search for options.

    Raises:
        ConfigError: Hydra refuses an override.
    """
    choices = _searching([word for word in overrides if not word.startswith(SETS)], config_dirs)
    try:
        with _COMPOSING:
            config = copy.deepcopy(_chosen(root, choices, _versions(root, config_dirs)))
        for word in overrides:
            if word.startswith(SETS):
                _set(config, word)
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error
    assert isinstance(values, dict)
    return values


def _set(config: DictConfig, word: str) -> None:
    one = _parser().parse_override(word)
    value = one.value()
    try:
        # A mapping adds to the keys of the option; an empty one, which would add nothing, drops them.
        OmegaConf.update(config, one.key_or_group, value, merge=value != {}, force_add=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"Error merging override {word}: {str(error).splitlines()[0]}") from error


@lru_cache(maxsize=32)
def _chosen(root: str, choices: tuple[str, ...], versions: tuple[tuple[str, int, int], ...]) -> DictConfig:
    """The files of the chosen options, before keys are set. To read them takes ten times longer than to set keys."""
    return _by_hydra(root, choices)


def _searching(choices: Sequence[str], config_dirs: Sequence[str]) -> tuple[str, ...]:
    """Overrides that choose options, and one that lets Hydra search further folders for them."""
    search = [quoted(f"file://{Path(folder).resolve()}") for folder in config_dirs]
    return (*choices, *([f"hydra.searchpath=[{','.join(search)}]"] if search else []))


def _by_hydra(root: str, choices: Sequence[str], **options: bool) -> DictConfig:
    """What Hydra composes; the caller holds ``_COMPOSING``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(project_folder("config")), version_base="1.3"):
        return compose(root, overrides=list(choices), **options)


def chosen_options(root: str, choices: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[str, str]:
    """The option of each group, also where it is the default, or the option of another group chooses it.

    Args:
        root: name of the file.
        choices: overrides that choose options, ``group=option``.
        config_dirs: further folders to search for options.

    Raises:
        ConfigError: Hydra refuses an override.
    """
    try:
        with _COMPOSING:
            found = _by_hydra(root, _searching(choices, config_dirs), return_hydra_config=True).hydra.runtime.choices
    except HydraException as error:
        raise ConfigError(str(error)) from error
    return {str(group): str(option) for group, option in found.items()}


def _versions(root: str, config_dirs: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Path, time of the last change and size of each file that may be read."""
    found = [project_folder("config") / f"{root}.yaml", *option_files(config_dirs)]
    facts = [(path, path.stat()) for path in sorted(found)]
    return tuple((str(path), fact.st_mtime_ns, fact.st_size) for path, fact in facts)
