"""Completions of a few questions, for tests of ``objective=grpo``."""

from functools import cache

import numpy as np

from coconut_ds.methods import METHODS
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import lay_out_prompt
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.thought_noise import NoiseSizes
from coconut_ds.objectives.grpo import Completions
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config

MARKERS = MarkerIds(36, 37, 39, 38)
QUESTIONS = ([1, 2, 3], [11, 12], [16], [2, 4, 6, 8], [3, 5, 7, 9, 11])
WRITTEN = ([10, 0], [14, 15, 16, 0], [17], [22, 23, 0], [31, 30, 31, 30, 0])
GAINS = (0.75, -0.5, 1.5, -1.25, 0.25)
WEIGHTS = (0.2, 0.1, 0.3, 0.05, 0.15)


@cache
def config_of(*overrides: str) -> Config:
    return compose_config(["objective=grpo", *overrides])


def completions_of(config: Config, num_thoughts: int, width: int, known: bool) -> Completions:
    """The completions above."""
    method = METHODS[config.method.kind]
    prompts = [lay_out_prompt(method, question, num_thoughts, MARKERS) for question in QUESTIONS]
    rows = [prompt.continued(tokens) for prompt, tokens in zip(prompts, WRITTEN, strict=True)]
    keys = () if config.objective.grpo.exploration == "none" else tuple(f"0/3/{row}/1" for row in range(5))
    gains, weights = np.array(GAINS), np.array(WEIGHTS)
    return Completions(
        (Layouts.of(rows),), gains, weights, keys, NoiseSizes(width), MARKERS.all(), is_only_update=not known
    )
