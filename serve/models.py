"""Loaded models: each is loaded when it is first asked for, within a memory budget; the least recently used leaves.

A model that somebody holds never leaves. Loading is slow: call ``hold`` from a thread that may wait.
"""

import gc
import json
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
from coconut_ds.model.precision import multiplies_bf16
from coconut_ds.reasoner import Reasoner, load_reasoner
from serve.checkpoints import Catalogue, Entry
from serve.errors import QueueFullError, ServiceError, UnavailableError
from serve.limits import EngineSettings
from serve.model_thread import ModelThread, Observer
from serve.safety import check_folder

log = logging.getLogger("serve")
FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, struct.error)
"""What files that are broken, or too large, raise; the project's own errors are among them."""


@dataclass
class Loaded:
    """A model in memory."""

    entry: Entry
    thread: ModelThread
    num_bytes: int
    holders: int = 0


class Models:
    """Models by name."""

    def __init__(
        self,
        catalogue: Catalogue,
        settings: EngineSettings,
        max_waiting: int,
        budget_bytes: int | None = None,
        observer: Callable[[str], Observer] | None = None,
    ) -> None:
        """
        Args:
            catalogue: what there is.
            settings: how each is run.
            max_waiting: completions that may wait, a model.
            budget_bytes: weights and caches of all loaded models; None: half of the machine's, or device's, memory.
            observer: makes the observer of a model's requests, by its name.
        """
        self.catalogue, self.settings = catalogue, settings
        self.budget_bytes = default_budget(settings) if budget_bytes is None else budget_bytes
        self._max_waiting, self._observer = max_waiting, observer
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._lock = threading.RLock()
        self._loading = threading.Lock()

    @property
    def loaded(self) -> dict[str, ModelThread]:
        """Threads of the models in memory, the least recently used first."""
        with self._lock:
            return {name: one.thread for name, one in self._loaded.items()}

    def held(self, name: str) -> ModelThread | None:
        """Takes hold of a model if it is in memory and well; to be given back with ``release``."""
        with self._lock:
            one = self._loaded.get(name)
            if one is None:
                return None
            self._loaded.move_to_end(name)
            one.holders += 1
            return one.thread

    def hold(self, name: str) -> ModelThread:
        """Takes hold of a model, which is loaded if need be; to be given back with ``release``.

        Raises:
            UnknownModelError: no checkpoint has this name.
            QueueFullError: models that run requests fill the memory.
            UnavailableError: it cannot be loaded.
        """
        entry = self.catalogue[name]
        with self._loading:
            thread = self.held(name)
            if thread is not None:
                return thread
            one = self._load(entry)
            one.holders = 1
            with self._lock:
                self._loaded[name] = one
            return one.thread

    def release(self, name: str) -> None:
        """Gives a model back."""
        with self._lock:
            one = self._loaded.get(name)
            if one is not None:
                one.holders -= 1

    @contextmanager
    def holding(self, name: str) -> Iterator[ModelThread]:
        """``with models.holding(name) as thread``."""
        thread = self.hold(name)
        try:
            yield thread
        finally:
            self.release(name)

    def close(self) -> None:
        """Ends all threads."""
        with self._lock:
            while self._loaded:
                self._loaded.popitem()[1].thread.close()

    def _load(self, entry: Entry) -> Loaded:
        began = time.perf_counter()
        try:
            check_folder(entry.folder, entry.root)
            needed = needed_bytes(entry.folder, self.settings)
            self._make_room(entry, needed)
            reasoner = self._read(entry.folder)
            observer = self._observer(entry.name) if self._observer is not None else None
            thread = ModelThread(reasoner, self.settings, self._max_waiting, observer)
            # Sets up the tokenizer while no other thread uses it, and takes the cache's memory.
            thread.run(lambda one: one.prompter.encode(["1"])).result()
        except ServiceError:
            raise
        except FAULTS as error:
            log.error("%s cannot be loaded: %s", entry.name, error)
            raise UnavailableError(
                f"model {entry.name} cannot be loaded; the server's log says why", "model"
            ) from error
        log.info("%s: loaded in %.1f s, %.2f GB", entry.name, time.perf_counter() - began, needed / 1e9)
        return Loaded(entry, thread, needed)

    def _read(self, folder: Path) -> Reasoner:
        """The model, loaded by a thread that ends with that.

        OpenMP keeps workers for each thread that ever computed. Once there are more of them than cores they no longer
        wait for work awake, and the engine's one-position passes take a fifth longer.
        """
        dtype, device = getattr(torch, self.settings.dtype), self.settings.device
        with ThreadPoolExecutor(1, "loader") as loader:
            return loader.submit(load_reasoner, folder, dtype=dtype, device=device).result()

    def _make_room(self, entry: Entry, needed: int) -> None:
        """Has models leave, the least recently used first, until ``needed`` bytes fit."""
        if needed > self.budget_bytes:
            raise CheckpointError(
                f"{entry.folder}: needs {needed / 1e9:.2f} GB with its cache, the budget is "
                f"{self.budget_bytes / 1e9:.2f}; raise --memory-gb, or lower --slots or --max-positions"
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
                    self._loaded[one.entry.name] = one
                    self._loaded.move_to_end(one.entry.name, last=False)
                raise QueueFullError("models that run requests fill the memory; try later", "model", retry_after_s=5)
        for one in leaving:
            log.info("%s leaves the memory", one.entry.name)
            one.thread.close()
        if leaving:
            del one, leaving
            gc.collect()


def default_budget(settings: EngineSettings) -> int:
    """Four fifths of the device's memory, or half of the machine's."""
    device = device_of(settings)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * 0.8)
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 // 2
    raise ConfigError("memory: cannot be told here; set --memory-gb")


def device_of(settings: EngineSettings) -> torch.device:
    """Where models compute."""
    return torch.device(settings.device) if settings.device is not None else alone().device


def needed_bytes(folder: Path, settings: EngineSettings) -> int:
    """Bytes that a model's weights and its cache take, by the headers of its files. Reads no weight."""
    dtype = getattr(torch, settings.dtype)
    if dtype == torch.bfloat16 and not multiplies_bf16(device_of(settings)):
        dtype = torch.float32
    size = torch.empty(0, dtype=dtype).element_size()
    weights = sum(numel for path in folder.glob("*.safetensors") for numel in _numels(path)) * size
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    context = getattr(config, "max_position_embeddings", None) or settings.max_positions
    positions = settings.slots * min(settings.max_positions, context)
    return int(weights + 2 * config.num_hidden_layers * positions * heads * head * size)


def _numels(path: Path) -> Iterator[int]:
    """Numbers in each tensor of a safetensors file: eight bytes of length, then a JSON header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(100_000_000, path.stat().st_size):
            raise CheckpointError(f"{path}: is no safetensors file")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for extent in tensor["shape"]:
                count *= extent
            yield count
