"""What a run reads from files: a part of its identity, so that a result of other files is not taken for its own."""

from collections.abc import Sequence
from pathlib import Path

from coconut_ds.data.problem import file_digest
from coconut_ds.data.sources import check_file
from coconut_ds.files import README, fingerprint
from coconut_ds.runs.identity import signature
from coconut_ds.settings.compose import compose_config


def file_contents(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[str, str]:
    """A hash of the content of each file and folder that a run with these overrides reads; empty if it reads none.

    Raises:
        ConfigError: the overrides make no valid configuration.
        DataError: a file of problems is missing.
    """
    config = compose_config(overrides, config_dirs)
    found: dict[str, str] = {}
    if config.data.kind == "file":
        for key in ("train_path", "val_path"):
            check_file(config.data, key)
        for key in ("train_path", "val_path", "test_path"):
            path = getattr(config.data, key)
            if path is not None and Path(path).is_file():
                found[f"data.{key}"] = file_digest(path)
    for key, name in (("run.load_model_path", config.run.load_model_path), ("model.model_id", config.model.model_id)):
        if name is not None and Path(name).exists():
            found[key] = _content(Path(name))
    return found


def _content(path: Path) -> str:
    """A hash of a file, or of the model in a checkpoint folder.

    What only a resume reads is left out, and so is the model card, which evaluations change.
    """
    files = [path] if path.is_file() else [*path.glob("*"), *path.glob("latent/*")]
    return signature({one.name: fingerprint(one) for one in sorted(files) if one.is_file() and one.name != README})
