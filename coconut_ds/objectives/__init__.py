"""The objectives, and their registry. An objective decides what the model learns of the sequences that a method makes.

The names in ``OBJECTIVES`` are the values that ``objective.kind`` accepts. To add an objective, write one file in this
folder, add one line to ``OBJECTIVES``, its name and its keys to ``settings/objective.py`` and one YAML file to
``config/objective``. Start reading in ``base``.
"""

from coconut_ds.objectives.base import Objective
from coconut_ds.objectives.codi import Codi
from coconut_ds.objectives.grpo import Grpo
from coconut_ds.objectives.likelihood import Likelihood
from coconut_ds.objectives.lotus import Lotus
from coconut_ds.objectives.sim_cot import SimCot, SimCotOnCodi
from coconut_ds.objectives.supervised_thoughts import SupervisedThoughts
from coconut_ds.settings import Config

OBJECTIVES: dict[str, type[Objective]] = {
    "likelihood": Likelihood,
    "codi": Codi,
    "lotus": Lotus,
    "sim_cot": SimCot,
    "sim_cot_codi": SimCotOnCodi,
    "supervised_thoughts": SupervisedThoughts,
    "grpo": Grpo,
}


def objective_of(config: Config) -> Objective:
    """The objective that a configuration names, with its settings."""
    return OBJECTIVES[config.objective.kind](config)
