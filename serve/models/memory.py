"""How much memory a model needs, and how much the models of a server may take together."""

from pathlib import Path

import torch
from transformers import AutoConfig

from coconut_ds.distributed.host_memory import HostMemoryError, usable_bytes
from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import ConfigError
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.model.folder_files import weight_files
from coconut_ds.model.precision import multiplies_bf16
from coconut_ds.model.support import longest_sequence
from coconut_ds.model.weights_file import read_header
from serve.limits import EngineSettings


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
    context = longest_sequence(config) or settings.max_positions
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
    try:
        return usable_bytes() // 2
    except HostMemoryError as error:
        raise ConfigError(f"memory: {error}; set --memory-gb") from error


def device_of(settings: EngineSettings) -> torch.device:
    """The device that models run on."""
    return torch.device(settings.device) if settings.device is not None else alone().device
