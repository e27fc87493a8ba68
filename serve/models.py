"""Loaded models. A model is loaded when it is first requested; when memory runs short, unused models are unloaded.

All loaded models together stay within a memory budget: the least recently used models that no caller holds are unloaded
first. Loading is slow, so call ``hold`` from a thread that may block.
"""

import gc
import logging
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.model.folder_files import weight_files
from coconut_ds.model.precision import multiplies_bf16, use_tf32
from coconut_ds.reasoner import Reasoner, load_reasoner
from coconut_ds.strict_json import parse_json
from serve.checkpoints import Checkpoints, ServedCheckpoint
from serve.errors import QueueFullError, ServiceError, UnavailableError
from serve.jobs import Observer
from serve.limits import EngineSettings, Limits
from serve.model_thread import ModelThread
from serve.safety import check_folder

log = logging.getLogger("serve")
FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, struct.error)
"""Exceptions that loading a broken or too large checkpoint may raise; the project's own errors are subclasses."""
CLOSE_S = 2.0
"""Seconds that the threads of models get for their last pass when the server stops."""


@dataclass
class Loaded:
    """A model in memory."""

    checkpoint: ServedCheckpoint
    thread: ModelThread
    num_bytes: int
    """Memory of its weights and its key/value cache."""
    holders: int = 0
    """Number of ``hold`` calls without their ``release``."""


class Models:
    """Loads and unloads models, which are named after their checkpoints."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: EngineSettings,
        max_waiting: int,
        budget_bytes: int | None = None,
        observer: Callable[[str], Observer] | None = None,
        client_room: int = Limits.client_room,
    ) -> None:
        """
        Args:
            checkpoints: the checkpoints that can be loaded.
            settings: slots, positions, dtype and device of every model.
            max_waiting: maximum number of completions per model that may wait for a slot.
            budget_bytes: memory that the weights and caches of all loaded models may take together; None: see
                ``default_budget``.
            observer: given a model's name, returns the observer of its requests.
            client_room: number of completions per model that each client may have even if others fill the queue.
        """
        self.checkpoints, self.settings = checkpoints, settings
        note = use_tf32("--tf32", settings.tf32, settings.dtype != "float32", device_of(settings))
        if note is not None:
            log.info("%s", note)
        self.budget_bytes = default_budget(settings) if budget_bytes is None else budget_bytes
        self._max_waiting, self._client_room, self._observer = max_waiting, client_room, observer
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._lock = threading.RLock()
        self._loading = threading.Lock()

    @property
    def loaded(self) -> dict[str, ModelThread]:
        """Threads of the loaded models by name, the least recently used first."""
        with self._lock:
            return {name: one.thread for name, one in self._loaded.items()}

    def hold_if_loaded(self, name: str) -> ModelThread | None:
        """Like ``hold``, but returns None if the model is not loaded, instead of loading it."""
        with self._lock:
            one = self._loaded.get(name)
            if one is None:
                return None
            self._loaded.move_to_end(name)
            one.holders += 1
            return one.thread

    def hold(self, name: str) -> ModelThread:
        """Keeps a model in memory until ``release`` is called, after loading it if necessary.

        Raises:
            UnknownModelError: no checkpoint has this name.
            QueueFullError: the models in use leave no memory for it.
            UnavailableError: it cannot be loaded.
        """
        checkpoint = self.checkpoints[name]
        with self._loading:
            thread = self.hold_if_loaded(name)
            if thread is not None:
                return thread
            one = self._load(checkpoint)
            one.holders = 1
            with self._lock:
                self._loaded[name] = one
            return one.thread

    def release(self, name: str) -> None:
        """Ends one ``hold`` of a model, which may be unloaded once nothing holds it."""
        with self._lock:
            one = self._loaded.get(name)
            if one is not None:
                one.holders -= 1

    @contextmanager
    def holding(self, name: str) -> Iterator[ModelThread]:
        """Holds a model during a ``with`` block: ``with models.holding(name) as thread``."""
        thread = self.hold(name)
        try:
            yield thread
        finally:
            self.release(name)

    def close(self) -> None:
        """Unloads all models and ends their threads.

        Waits at most ``CLOSE_S`` seconds for all of them together; a thread whose pass takes longer is left behind.
        """
        with self._lock:
            threads = [one.thread for one in self._loaded.values()]
            self._loaded.clear()
        ends_at = time.monotonic() + CLOSE_S
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.close(max(0.0, ends_at - time.monotonic()))

    def _load(self, checkpoint: ServedCheckpoint) -> Loaded:
        began = time.perf_counter()
        try:
            # Checked again: the folder may have changed since the server started.
            check_folder(checkpoint.folder, checkpoint.root)
            needed = needed_bytes(checkpoint.folder, self.settings)
            self._make_room(checkpoint, needed)
            reasoner = self._read(checkpoint.folder)
            observer = self._observer(checkpoint.name) if self._observer is not None else None
            thread = ModelThread(reasoner, self.settings, self._max_waiting, observer, self._client_room)
            # Initializes the tokenizer while no other thread uses it, and waits until the model's thread runs.
            thread.run(lambda one: one.prompter.encode(["1"])).result()
        except ServiceError:
            raise
        except FAULTS as error:
            log.error("%s cannot be loaded: %s", checkpoint.name, error)
            raise UnavailableError(
                f"model: {checkpoint.name} cannot be loaded; the server's log has the reason", "model"
            ) from error
        log.info("%s: loaded in %.1f s, %.2f GB", checkpoint.name, time.perf_counter() - began, needed / 1e9)
        return Loaded(checkpoint, thread, needed)

    def _read(self, folder: Path) -> Reasoner:
        """Loads the model on a temporary thread.

        OpenMP keeps a worker pool for every thread that has ever computed. With more workers than cores they stop
        busy-waiting for work, and the engine's passes over single positions take a fifth longer.
        """
        dtype, device = getattr(torch, self.settings.dtype), self.settings.device
        with ThreadPoolExecutor(1, "loader") as loader:
            return loader.submit(load_reasoner, folder, dtype=dtype, device=device).result()

    def _make_room(self, checkpoint: ServedCheckpoint, needed: int) -> None:
        """Unloads models that nothing holds, the least recently used first, until ``needed`` bytes are free."""
        if needed > self.budget_bytes:
            raise CheckpointError(
                f"{checkpoint.folder}: weights and cache need {needed / 1e9:.2f} GB, but the memory budget is "
                f"{self.budget_bytes / 1e9:.2f} GB; raise --memory-gb, or lower --slots or --max-positions"
            )
        leaving = []
        with self._lock:
            free = self.budget_bytes - sum(one.num_bytes for one in self._loaded.values())
            for name, one in list(self._loaded.items()):
                if free >= needed:
                    break
                if not one.holders:
                    leaving.append(self._loaded.pop(name))
                    free += one.num_bytes
            if free < needed:
                for one in reversed(leaving):
                    self._loaded[one.checkpoint.name] = one
                    self._loaded.move_to_end(one.checkpoint.name, last=False)
                raise QueueFullError(
                    "model: other models in use leave no memory for it; retry later", "model", retry_after_s=5
                )
        for one in leaving:
            log.info("%s: unloaded", one.checkpoint.name)
            one.thread.close()
        if leaving:
            del one, leaving
            gc.collect()


def default_budget(settings: EngineSettings) -> int:
    """Memory budget in bytes: 0.8 of the memory of a CUDA device; otherwise 0.5 of the machine's memory.

    Raises:
        ConfigError: the system does not report its memory.
    """
    device = device_of(settings)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * 0.8)
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 // 2
    raise ConfigError("memory: /proc/meminfo does not report this machine's memory; set --memory-gb")


def device_of(settings: EngineSettings) -> torch.device:
    """The device that models run on."""
    return torch.device(settings.device) if settings.device is not None else alone().device


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
    weights = sum(numel for path in files for numel in _numels(path)) * size
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    context = getattr(config, "max_position_embeddings", None) or settings.max_positions
    positions = settings.num_rows * min(settings.max_positions, context)
    return int(weights + 2 * config.num_hidden_layers * positions * heads * head * size)


def _numels(path: Path) -> Iterator[int]:
    """Number of elements of each tensor of a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(100_000_000, path.stat().st_size):
            raise CheckpointError(f"{path}: is not a safetensors file")
        try:
            header = parse_json(file.read(length).decode())
        except ValueError as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for extent in tensor["shape"]:
                count *= extent
            yield count
