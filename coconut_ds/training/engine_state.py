"""The state of a DeepSpeed engine on the disk: weights, optimizer and random states, without pickle.

DeepSpeed collects its state, which differs between ZeRO stages, and names the files. ``StateFiles`` takes the place of
the object by which DeepSpeed writes and reads them: what is to be written is only noted, so that it can be copied and
written later, and files are those of ``distributed.state_file`` instead of pickles.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coconut_ds.distributed.random_states import random_state, set_random_state
from coconut_ds.distributed.state_file import SUFFIX, StateTree, is_state, loading_no_code, read_pickle, read_state
from coconut_ds.errors import CheckpointError
from coconut_ds.runs.fencing import pinned
from coconut_ds.runs.pickles import SUFFIX as PICKLES

STATE = "state"
"""DeepSpeed's tag of a saved state: the name of a subfolder of the folder that the state is written to."""
DIRECTIONS = f"value_directions{SUFFIX}"
"""The file with the weights that the noise on values follows (``ValueDirections.weights``), beside the state."""
SHARED = "run.save_path must be on a file system that all nodes share"
CONVERTER = "coconut_ds.training.convert_state"


@dataclass
class EngineSnapshot:
    """The files of one rank, noted or copied at one moment, to be written into the folder of a checkpoint."""

    noted: list[tuple[str, Any]]
    """Path within the folder, and state, in the order of writing."""
    files: list[tuple[str, StateTree]] = field(default_factory=list)
    """The same, once ``encode`` has divided the states."""

    def encode(self) -> None:
        """Divides the states into tensors and values. Call it before all that follows.

        Raises:
            CheckpointError: a state contains an object that cannot be written.
        """
        self.files, self.noted = [(name, StateTree.of(state)) for name, state in self.noted], []

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tree.num_bytes for _, tree in self.files)

    def copy(self) -> None:
        """Copies all tensors to the memory of the host; until then, they change with the engine."""
        for _, tree in self.files:
            tree.copy()

    def write(self, folder: Path) -> None:
        """Writes the files.

        Raises:
            OSError: a file could not be written.
        """
        for name, tree in self.files:
            path = folder / name
            if path.parent != folder:
                path.parent.mkdir(exist_ok=True)
            tree.write(path)


class StateFiles:
    """Takes the place of a ``CheckpointEngine`` of DeepSpeed."""

    name = "coconut_ds"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.noted: list[tuple[str, Any]] = []

    def save(self, state_dict: Any, path: str) -> None:
        """Notes a state instead of writing it. An error here would leave the other ranks in a barrier of DeepSpeed."""
        self.noted.append((str(Path(path).relative_to(self._folder)), state_dict))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Reads a state to the memory of the host."""
        file = Path(path)
        return read_pickle(file) if file.suffix == PICKLES and not is_state(file) else read_state(file)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made when files are written."""

    def create(self, info: Any) -> None:
        """DeepSpeed begins to save."""

    def commit(self, info: Any) -> bool:
        """DeepSpeed has saved everything."""
        return True

    def is_decoupled(self) -> bool:
        """Whether DeepSpeed must ask later if everything has been written."""
        return False

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Which rank writes the model's weights."""
        return dp_rank == 0

    def preserves_storage_sharing(self) -> bool:
        """Whether a view makes the whole tensor be written."""
        return False


def snapshot_of(engine: Any, folder: Path, rank: int, directions: Any) -> EngineSnapshot:
    """Notes the state of an engine. All ranks must call it.

    Args:
        engine: DeepSpeed's engine.
        folder: where the state will be written. It exists; with an optimizer on NVMe, DeepSpeed copies its files there.
        rank: of this process.
        directions: weights that the noise on values follows; None: there are none, or this is not rank 0.
    """
    with _files(engine, folder, SUFFIX) as files:
        engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)
    if directions is not None:
        files.noted.append((DIRECTIONS, directions))
    # Written last: a rank whose file of random states is there has written all others.
    files.noted.append((random_file(folder, rank).name, random_state()))
    return EngineSnapshot(files.noted)


def load_engine_state(engine: Any, folder: Path, tag: str, rank: int | None) -> None:
    """Restores what an ``EngineSnapshot`` has written, or what ``convert_state`` made of it. No file can run code.

    Args:
        engine: DeepSpeed's engine.
        folder: that of the snapshot, or the output of the conversion.
        tag: ``STATE``, or the subfolder of the output of the conversion.
        rank: whose random states are restored; None: none are.

    Raises:
        CheckpointError: the folder has no state, or the file of this rank is missing or malformed.
    """
    with _files(engine, folder, SUFFIX if tag == STATE else PICKLES), loading_no_code():
        path, _ = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise CheckpointError(f"{folder}: contains no state of the engine")
    if rank is not None:
        file = random_file(folder, rank)
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; {SHARED}")
        set_random_state(read_state(file))


def random_file(folder: Path, rank: int) -> Path:
    """The file with the random states of a rank, which is written last."""
    return folder / f"random_{rank}{SUFFIX}"


def convert_state(folder: Path, out: Path) -> None:
    """Converts a saved state, which only the same number of ranks can load, to one for any number of ranks.

    Args:
        folder: the folder that a snapshot was written to.
        out: the folder to create.

    Raises:
        CheckpointError: DeepSpeed's converter failed; the message contains its last lines of output.
    """
    out.mkdir()
    with pinned(out) as path:
        command = [sys.executable, "-m", CONVERTER, str(folder / STATE), str(path / f"{STATE}_universal")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise CheckpointError(f"{folder}: cannot be converted for another number of ranks: {lines}")


@contextmanager
def _files(engine: Any, folder: Path, suffix: str) -> Iterator[StateFiles]:
    """Within it, DeepSpeed writes and reads by means of ``StateFiles``, and its files have this suffix."""
    own, usual = StateFiles(folder), engine.checkpoint_engine
    naming = {name: getattr(engine, name) for name in ("_get_ckpt_name", "_get_rank_zero_ckpt_name")}

    def renamed(name: str) -> Any:
        return lambda *arguments, **options: naming[name](*arguments, **options).removesuffix(PICKLES) + suffix

    engine.checkpoint_engine = own
    for name in naming:
        setattr(engine, name, renamed(name))
    # On rank 0, DeepSpeed would copy its recovery scripts, which read pickles, next to the state.
    engine._copy_recovery_script = lambda path: None
    try:
        yield own
    finally:
        engine.checkpoint_engine = usual
        for name in (*naming, "_copy_recovery_script"):
            delattr(engine, name)
