"""The state of an engine is read without running code, and pickles of earlier versions are refused unopened."""

import ast
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from equal_runs import unequal
from making_runs import RUN, make_attempt

from coconut_ds.distributed.random_states import random_state
from coconut_ds.distributed.state_file import StateTree, loading_no_code, read_pickle, read_state, write_state
from coconut_ds.distributed.zero import state_classes
from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL, seal
from coconut_ds.runs import cli
from coconut_ds.runs.attempts import usable_checkpoint
from coconut_ds.runs.folder import ENGINE, RunFolder
from coconut_ds.runs.manifest import now
from coconut_ds.training.engine_state import StateFiles

ROOT = Path(__file__).resolve().parents[1]


def state() -> dict[Any, Any]:
    classes, tensor = state_classes(), torch.arange(6.0).reshape(2, 3)
    return {
        "tensor": tensor,
        "transposed": tensor.T,
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        7: (1, [2.5, float("inf"), None, True], "ü"),
        ("a", 1): OrderedDict(first=torch.Size([2, 3]), second=torch.float32),
        "slice": classes["fragment_address"](numel=3, start=1),
        "stage": classes["ZeroStageEnum"](2),
        "scaler": classes["LossScaler"](scale=4.0),
        "random": random_state(),
        "array": numpy.array([[1, 2], [3, 4]], dtype=numpy.uint32)[:, ::-1],
    }


class Trap:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "")


def test_a_state_is_read_as_it_was_written_bit_for_bit(tmp_path):
    whole = state()
    whole["again"] = whole["tensor"]
    write_state(whole, tmp_path / "state.safetensors")
    found = read_state(tmp_path / "state.safetensors")
    assert unequal(whole, found, "") == []
    assert list(found) == list(whole)
    assert found["again"] is found["tensor"], "a tensor is written once"
    write_state(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "state.safetensors").read_bytes()


def test_a_copy_does_not_change_with_the_engine(tmp_path):
    weights = torch.ones(3)
    tree, live = StateTree.of({"weights": weights}), StateTree.of({"weights": weights})
    tree.copy()
    weights.zero_()
    for one in (tree, live):
        one.write(tmp_path / "state.safetensors")
        kept = read_state(tmp_path / "state.safetensors")["weights"]
        assert torch.equal(kept, torch.ones(3) if one is tree else torch.zeros(3))


@pytest.mark.parametrize(
    "value", [Path("x"), {1, 2}, numpy.float32(1), lambda: None], ids=lambda value: type(value).__name__
)
def test_other_objects_cannot_be_written(tmp_path, value):
    with pytest.raises(CheckpointError, match="cannot be written without pickle"):
        write_state({"deep": [value]}, tmp_path / "state.safetensors")


def test_no_way_of_reading_runs_the_code_of_a_pickle(tmp_path):
    trap, done = tmp_path / "trap.safetensors", tmp_path / "executed"
    whole = tmp_path / "whole.pt"
    torch.save({"weights": torch.ones(1), "trap": Trap(done)}, whole)
    for content in (pickle.dumps(Trap(done)), whole.read_bytes()):
        trap.write_bytes(content)
        for read in (read_state, read_pickle, lambda path: StateFiles(tmp_path).load(str(path)), torch_load):
            with pytest.raises(CheckpointError):
                read(trap)
            pickled = trap.rename(trap.with_suffix(".pt"))
            with pytest.raises(CheckpointError):
                read(pickled)
            pickled.rename(trap)
    assert not done.exists()
    torch.load(whole, weights_only=False)
    assert done.exists(), "the trap works"


def torch_load(path: Path) -> Any:
    """As DeepSpeed does it."""
    with loading_no_code():
        return torch.load(path, map_location="cpu", weights_only=False)


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """An attempt with one checkpoint, whose state is in pickles."""
    folder = make_attempt(tmp_path / "outputs", RUN, "20260104-000000-dddd", now(), status="running")
    for path in folder.checkpoints()[1:]:
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
    (checkpoint,) = folder.checkpoints()
    (checkpoint / ENGINE / "state").mkdir()
    torch.save(state(), checkpoint / ENGINE / "state" / "mp_rank_00_model_states.pt")
    torch.save(random_state(), checkpoint / ENGINE / "random_0.pt")
    reseal(checkpoint)
    return folder


def reseal(checkpoint: Path) -> None:
    (checkpoint / SEAL).unlink()
    seal(checkpoint)


def test_pickles_of_an_earlier_version_are_refused_unopened_and_converted_on_request(old, capsys):
    (checkpoint,), lines, opened = old.checkpoints(), [], []
    watching = [True]
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if watching and event == "open" else None)
    with pytest.raises(CheckpointError, match="convert those with pickles"):
        usable_checkpoint(old, lines.append)
    watching.clear()
    assert f"coconut-runs accept {checkpoint}" in lines[0]
    assert not [path for path in opened if path.endswith(".pt")]
    expected = read_pickle(checkpoint / ENGINE / "state" / "mp_rank_00_model_states.pt")
    before = {str(path): path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert cli.main(["accept", "--dry-run", str(checkpoint)]) == 0
    assert {str(path): path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before
    assert cli.main(["accept", str(checkpoint)]) == 0
    assert capsys.readouterr().out.count("converting") == 2
    assert usable_checkpoint(old, lines.append) == checkpoint
    found = read_state(checkpoint / ENGINE / "state" / "mp_rank_00_model_states.safetensors")
    assert unequal(found, expected, "") == []
    assert list(checkpoint.rglob("*.pt")) == []


def test_a_pickle_with_code_is_not_converted(old, capsys):
    (checkpoint,), done = old.checkpoints(), old.path / "executed"
    (checkpoint / ENGINE / "random_0.pt").write_bytes(pickle.dumps(Trap(done)))
    assert cli.main(["accept", str(checkpoint)]) == 2
    assert "is damaged" in capsys.readouterr().err
    reseal(checkpoint)
    assert cli.main(["accept", str(checkpoint)]) == 2
    assert "holds more than tensors and numbers" in capsys.readouterr().err
    assert not done.exists()
    with pytest.raises(CheckpointError):
        usable_checkpoint(old, lambda line: None)


def test_no_module_unpickles_without_restrictions():
    for path in (*(ROOT / "coconut_ds").rglob("*.py"), *(ROOT / "serve").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "torch.load" in text or "pickle" in text else ():
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), path
            assert name != "torch.load" or given.get("weights_only") == "True", path
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") is None
