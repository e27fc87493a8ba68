"""Captures the one-position step as CUDA graphs, which launch all its kernels at once.

A graph repeats the kernels of one call with the same addresses and shapes, and runs no Python. So there is one graph
for each *key*, a pair of shapes. A step changes the state that the next one reads, so each call must have its effect
exactly once: the first calls with a key are real steps and serve as warm-up, the next one is captured, which runs
nothing, and then replayed.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch

from coconut_ds.distributed.zero import is_sharded
from coconut_ds.model.latent_loop import LatentLoop

log = logging.getLogger("coconut_ds")
WARM_UPS = 3
"""Steps with a key before its graph is captured: libraries allocate and choose kernels in them, and a key that occurs
only a few times is not worth a graph."""
CAPTURING = threading.Lock()
"""Held during a capture: PyTorch allows one at a time in a process."""

Step = Callable[[], None]
"""One step: reads and writes tensors whose addresses never change."""


class Capturer(Protocol):
    """Turns steps into something that repeats them."""

    def warm_up(self, step: Step) -> None:
        """Runs a step as it will be captured."""

    def capture(self, step: Step) -> Callable[[], None]:
        """Records a step without its effects. Returns the function that repeats it.

        Raises:
            RuntimeError: the step cannot be captured, for example because it reads a value from the device.
        """


class CudaCapturer:
    """Captures CUDA graphs on a stream of its own. All graphs share one memory pool, since only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step) -> None:
        """See ``Capturer``."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        current.wait_stream(self._stream)

    def capture(self, step: Step) -> Callable[[], None]:
        """See ``Capturer``."""
        graph = torch.cuda.CUDAGraph()
        # Threads of other models go on meanwhile, so only this thread's calls count.
        mode: dict[str, Any] = {"stream": self._stream, "pool": self._pool, "capture_error_mode": "thread_local"}
        current = torch.cuda.current_stream(self._device)
        try:
            with CAPTURING, torch.cuda.device(self._device), torch.cuda.graph(graph, **mode):
                step()
        except RuntimeError:
            # If ending a capture fails, torch.cuda.graph leaves this thread on the stream of the capture.
            torch.cuda.set_stream(current)
            raise
        return graph.replay


def capturer_for(loop: LatentLoop) -> Capturer | None:
    """The capturer for a model's device; None where steps are run without graphs.

    That is everywhere but on CUDA, under ZeRO-3, whose hooks gather the weights in Python, and for models whose rotary
    embedding depends on the largest position of a pass: the host reads it, and free slots would change it.
    """
    rope: dict[str, Any] = getattr(loop.model.config.get_text_config(), "rope_parameters", None) or {}
    # Some families have one for each type of layer.
    kinds = {each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)}
    reads_positions = not kinds.isdisjoint(("dynamic", "longrope"))
    if loop.device.type != "cuda" or reads_positions or any(map(is_sharded, loop.model.parameters())):
        return None
    return CudaCapturer(loop.device)


class StepGraphs:
    """Runs steps, by graphs where possible. After one failed capture, all steps run without graphs."""

    def __init__(self, capturer: Capturer) -> None:
        self._capturer: Capturer | None = capturer
        self._calls: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Callable[[], None]] = {}

    def run(self, key: Hashable, step: Step) -> None:
        """Runs a step once. Steps with the same key must have the same shapes and addresses."""
        if self._capturer is None:
            step()
        elif self._calls[key] < WARM_UPS:
            self._calls[key] += 1
            self._capturer.warm_up(step)
        else:
            self._replay_of(key, step, self._capturer)()

    def forget(self) -> None:
        """Drops all graphs, because addresses or shapes have changed."""
        self._calls.clear()
        self._replays.clear()

    def _replay_of(self, key: Hashable, step: Step, capturer: Capturer) -> Callable[[], None]:
        if key not in self._replays:
            try:
                self._replays[key] = capturer.capture(step)
            except RuntimeError as error:
                log.warning("generation runs without CUDA graphs, which is slower: %s", error)
                self._capturer = None
                self.forget()
                return step
        return self._replays[key]
