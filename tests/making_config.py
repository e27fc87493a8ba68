"""Configurations composed with and without Hydra, for the tests of the settings."""

import copy
from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel

from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config
from coconut_ds.settings.compose import (
    compose_config,
    compose_values,
)


@cache
def composed(*overrides: str) -> Config:
    return compose_config(overrides)


@cache
def default_values() -> dict[str, Any]:
    return compose_values("config", Config, [])


def config(changes: dict[str, Any]) -> Config:
    """The default configuration with dotted keys replaced, without Hydra."""
    values = copy.deepcopy(default_values())
    for key, value in changes.items():
        group, name = key.split(".")
        values[group][name] = value
    return Config.from_dict(values)


def refusal(overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    return str(caught.value)


def values_of(config: BaseModel, keys: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        found[key] = value
    return found
