"""The directory of one attempt at a run: ``<save_path>/<name>/<signature>/<attempt_id>/``.

It holds ``config.yaml``, ``metrics.jsonl``, ``problems/`` where they are generated,
``samples/``, ``checkpoint_<epoch>/`` and, at the end, ``summary.json``.
The signature stands for the resolved configuration less what cannot change a number. Each launch makes a new attempt.
"""

import hashlib
import json
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config

NOT_IN_SIGNATURE = (
    "run.save_path",
    "run.project",
    "run.wandb_entity",
    "run.wandb",
    "run.resume_mode",
    "run.resume_attempt_id",
    "run.signature_ignore_keys",
    "data.cache_path",
    "training.num_epochs",
)
"""Where things go, how they are logged, how long to go on."""


RUN_LINE = "run: "
"""What stands before the directory in a run's log."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one attempt."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The record of numbers."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What came out of a run that ended."""
        return self.path / "summary.json"

    @property
    def problems(self) -> Path:
        """Generated problems."""
        return self.path / "problems"

    def checkpoint(self, epoch: int) -> Path:
        """The model folder after ``epoch`` epochs."""
        return self.path / f"checkpoint_{epoch}"

    def discard(self) -> None:
        """Removes an attempt that never began, and folders above it that are empty now."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self.path.parents[:3]:
            try:
                parent.rmdir()
            except OSError:
                # Not empty, or not ours to remove: it stays, and so do those above.
                return

    def write_samples(self, epoch: int, samples: list[dict[str, Any]]) -> None:
        """A few validation problems with what the model wrote."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        text = json.dumps(samples, indent=2, ensure_ascii=False)
        (folder / f"epoch_{epoch}.json").write_text(text + "\n", encoding="utf-8")


def signature(config: Config) -> str:
    """Twelve hexadecimal digits that stand for what the configuration says about the numbers."""
    values = config.model_dump(mode="json")
    for key in (*NOT_IN_SIGNATURE, *config.run.signature_ignore_keys):
        inner = values
        *path, last = key.split(".")
        for part in path:
            inner = inner[part]
        inner.pop(last, None)
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def start_attempt(config: Config) -> RunFolder:
    """Makes the directory of a new attempt and writes ``config.yaml`` in it. Rank 0 only."""
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = Path(config.run.save_path) / config.run.name / signature(config) / attempt
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"run.save_path={config.run.save_path}: cannot be written to ({error})") from error
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (path / "config.yaml").write_text(text, encoding="utf-8")
    return RunFolder(path)
