"""The names that models are shown with, and that the folders of their results carry."""

from pathlib import Path

from coconut_ds.hub import short_name
from coconut_ds.runs.catalogue import is_attempt


def model_name(path: Path) -> str:
    """A short name of a model: ``RUN-ATTEMPT-checkpoint_N`` for the checkpoint of a run, else see ``short_name``."""
    resolved = path.resolve()
    if not is_attempt(resolved.parent):
        return short_name(path)
    return "-".join((resolved.parents[2].name, resolved.parent.name, resolved.name))
