"""The typed, frozen configuration of an experiment, validated when it is created.

Each group of ``config/`` is a class in this package, and each key is a field with its meaning and unit in the docstring
below it; ``--help`` prints these docstrings. Hydra's result enters through ``Config.from_dict``, and no module outside
``composition`` sees Hydra or OmegaConf. Unknown keys, values of the wrong type and combinations that cannot work are
reported together in one message.
"""

from coconut_ds.noise_kinds import ThoughtNoiseKind
from coconut_ds.settings.config import Config
from coconut_ds.settings.data import DataConfig, SplitSizes
from coconut_ds.settings.evaluation import EvalConfig
from coconut_ds.settings.model import LoraConfig, MethodConfig, ModelConfig
from coconut_ds.settings.objective import ObjectiveConfig, SimCotConfig
from coconut_ds.settings.probing import ProbeConfig
from coconut_ds.settings.run import RunConfig
from coconut_ds.settings.training import DeepSpeedConfig, TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ProbeConfig",
    "RunConfig",
    "SimCotConfig",
    "SplitSizes",
    "ThoughtNoiseKind",
    "TrainingConfig",
]
