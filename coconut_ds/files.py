"""Where the configuration files lie: beside the package in a checkout, inside it once installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_folder(name: str) -> Path:
    """The folder ``config`` or ``ds_configs``."""
    packed = _PACKAGE / "_files" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def train_script() -> Path:
    """The file that launchers start."""
    return _PACKAGE / "train.py"
