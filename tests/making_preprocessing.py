"""The scripts of ``preprocessing/`` as modules, and what the files that they write contain."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"preprocessing_{name}", ROOT / "preprocessing" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gsm, prontoqa = script("gsm_icot"), script("prontoqa")


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the files directly in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
