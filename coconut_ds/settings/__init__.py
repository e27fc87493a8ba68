"""The one typed, frozen configuration of an experiment; validated when made.

Every group of ``config/`` is one class here, every key a field with its meaning and unit below it. What Hydra composed
enters through ``Config.from_dict``; nothing further in sees Hydra or OmegaConf. Unknown keys, values of another type
and combinations that cannot work are refused at once, all of them in one message.
"""

from coconut_ds.settings.config import Config
from coconut_ds.settings.data import DataConfig, SplitSizes
from coconut_ds.settings.evaluation import EvalConfig
from coconut_ds.settings.model import MethodConfig, ModelConfig
from coconut_ds.settings.probing import ProbeConfig
from coconut_ds.settings.run import RunConfig
from coconut_ds.settings.training import DeepSpeedConfig, TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "MethodConfig",
    "ModelConfig",
    "ProbeConfig",
    "RunConfig",
    "SplitSizes",
    "TrainingConfig",
]
