"""Models whose files change while they are served."""

import shutil
from pathlib import Path

from serving import save_checkpoint

from coconut_ds import load_reasoner
from coconut_ds.files import put_in_place
from serve.checkpoints.offered import find_checkpoints
from serve.engine.model_thread import ModelThread
from serve.limits import EngineSettings
from serve.models.pool import Models

SETTINGS = EngineSettings(slots=2, max_positions=64)
QUESTION = "the cat"


def make_versions(folder: Path) -> dict[str, tuple[Path, str]]:
    """Two models with other weights, and the text that each generates on ``QUESTION``."""
    made = {name: save_checkpoint(folder / name, seed=seed) for seed, name in enumerate("xy")}
    return {
        name: (path, load_reasoner(path).generate(QUESTION, max_new_tokens=8)[0].text) for name, path in made.items()
    }


def put(version: Path, folder: Path) -> None:
    """Puts a version in place as training does."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.copytree(version, part)
    put_in_place(part, folder)


def text_of(thread: ModelThread) -> str:
    """What the model of this thread generates on ``QUESTION``."""
    return thread.run(lambda reasoner: reasoner.generate(QUESTION, max_new_tokens=8)[0].text).result(60)


def served(root: Path, budget_bytes: int = 10**8) -> Models:
    """The models in a folder, none of which is loaded yet."""
    return Models(find_checkpoints([str(root)]), SETTINGS, 8, budget_bytes)


def scan(models: Models) -> None:
    """Waits for a look at the folders that begins now: the first one may have begun before."""
    for _ in range(2):
        models.checkpoints.scan().result(20)
