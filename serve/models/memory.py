"""How much memory a model needs, and how much the models of a server may take together."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig

from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import ConfigError
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.model.folder_files import weight_files
from coconut_ds.model.precision import multiplies_bf16
from coconut_ds.model.weights_file import read_header
from serve.limits import EngineSettings

LIMITS = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}
"""By type of file system: the file with the memory limit of a group of processes (version 2 and 1 of cgroups)."""


def needed_bytes(folder: Path, settings: EngineSettings) -> int:
    """Bytes of a model's weights and of its key/value cache, computed from its config and its files' headers.

    Raises:
        CheckpointError: a file's header is not that of a safetensors file.
    """
    dtype = getattr(torch, settings.dtype)
    if dtype == torch.bfloat16 and not multiplies_bf16(device_of(settings)):
        dtype = torch.float32
    size = torch.empty(0, dtype=dtype).element_size()
    files = [*weight_files(folder), *(path for path in [folder / FEED_FILE] if path.is_file())]
    weights = sum(stored.numel for path in files for stored in read_header(path).values()) * size
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    context = getattr(config, "max_position_embeddings", None) or settings.max_positions
    # Graphs of CUDA need one more position in each row.
    columns = min(settings.max_positions, context) + (device_of(settings).type == "cuda")
    positions = settings.num_rows * columns
    return int(weights + 2 * config.num_hidden_layers * positions * heads * head * size)


def default_budget(settings: EngineSettings) -> int:
    """Memory budget in bytes: 0.8 of the memory of a CUDA device; otherwise 0.5 of the memory that processes may use.

    Raises:
        ConfigError: the system does not report its memory.
    """
    device = device_of(settings)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * 0.8)
    return usable_bytes() // 2


def device_of(settings: EngineSettings) -> torch.device:
    """The device that models run on."""
    return torch.device(settings.device) if settings.device is not None else alone().device


def usable_bytes(proc: Path = Path("/proc")) -> int:
    """Memory that this process may use, in bytes: the machine's, or the limit of its container if that is smaller.

    Args:
        proc: where the kernel reports on processes.

    Raises:
        ConfigError: the system does not report its memory.
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    except (OSError, StopIteration, ValueError, IndexError) as error:
        raise ConfigError(
            f"memory: {proc}/meminfo does not report this machine's memory ({error!r}); set --memory-gb"
        ) from error
    return min([total, *_limits(proc)])


def _limits(proc: Path) -> Iterator[int]:
    """The memory limits of all cgroups that this process belongs to: its own, and those around it."""
    try:
        groups = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "self" / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    # Lines are `ID:CONTROLLERS:PATH`; in version 2 there are no controllers.
    paths = {controller: Path(path) for _, names, path in _split(groups) for controller in names.split(",")}
    for line in mounts:
        # `… ROOT MOUNT_POINT OPTIONS … - TYPE SOURCE OPTIONS`, see proc(5).
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        own = paths.get("" if kind[0] == "cgroup2" else "memory")
        in_use = kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[-1].split(","))
        if in_use and own is not None and len(fields) > 4:
            yield from _limits_below(Path(_unescaped(fields[4])), Path(_unescaped(fields[3])), own, LIMITS[kind[0]])


def _split(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        yield number, names, path


def _limits_below(mount: Path, root: Path, own: Path, name: str) -> Iterator[int]:
    """The limits in files called ``name`` of a group and of those around it.

    Args:
        mount: where the groups are mounted.
        root: the group that is mounted there; a container sees only the groups inside its own.
        own: the group.
        name: name of the files.
    """
    inside = own.relative_to(root) if own.is_relative_to(root) else Path()
    folder = mount / inside
    for each in (folder, *folder.parents):
        if each.is_relative_to(mount):
            try:
                yield int((each / name).read_text(encoding="ascii"))
            except (OSError, ValueError):
                # The outermost group has no such file, and `max` means that there is no limit.
                continue


def _unescaped(path: str) -> str:
    r"""A path of ``mountinfo``, where white space and backslashes are written as ``\040``."""
    return path.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in path else path
