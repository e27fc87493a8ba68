"""What tests of training share: a tiny experiment, and an engine in plain torch with the calls of the real one.

``TorchEngine`` does on one process, with torch's own AdamW, what ``coconut_ds.training.engine.Engine`` does with
DeepSpeed on any number of ranks. ``test_engine.py`` holds the real engine to plain torch, so tests of what is around it
may use this one and need no processes.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coconut_ds.distributed.random_states import random_state, set_random_state
from coconut_ds.distributed.ranks import ALONE, Ranks
from coconut_ds.distributed.start_weights import StartWeights
from coconut_ds.distributed.state_file import read_state, write_state
from coconut_ds.errors import NonFiniteError
from coconut_ds.objectives.base import Tensors
from coconut_ds.runs.folder import RunFolder
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.engine_state import random_file
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.update_result import UpdateResult

TINY = (
    *("run=demo", "run.name=tiny", "data=modular_sum", "size={train: 20, valid: 6, test: 6}", "max_new_tokens=4"),
    *("model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo", "max_latent_stage=2", "c_thought=1"),
    *("advance=epochs", "epochs_per_stage=1", "num_epochs=3", "global_batch_size=8", "batch_size_training=4"),
    *("batch_size_eval=4", "keep_last=null", "run.wandb=disabled"),
    "model.model_config_overrides={n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64, initializer_range: 0.1, "
    "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}",
)
"""20 problems in batches of 8: three updates an epoch, the last one smaller. Three epochs, at stages 0, 1 and 2."""
DROPOUT = "model.model_config_overrides.resid_pdrop=0.2"


@cache
def tiny_config(*overrides: str) -> Config:
    return compose_config([*TINY, *overrides])


def tiny_experiment(*overrides: str, ranks: Ranks = ALONE) -> Experiment:
    return Experiment.prepare(tiny_config(*overrides), ranks, lambda line: None)


def run_folder(path: Path) -> RunFolder:
    """The folder of a new, empty attempt."""
    folder = RunFolder(path / "tiny" / "signature" / "attempt")
    folder.path.mkdir(parents=True)
    return folder


@dataclass
class TorchSnapshot:
    """Takes the place of ``EngineSnapshot``: the state changes with the engine until it is copied."""

    engine: "TorchEngine"
    state: dict[str, Any]
    randoms: dict[str, Any]
    num_bytes: int = 1

    def encode(self) -> None:
        """Nothing is to be divided."""

    def copy(self) -> None:
        self.state = copy.deepcopy(self.state)

    def write(self, folder: Path) -> None:
        self.engine.save_state(folder, self.state, self.randoms)


class TorchEngine:
    """Trains a latent loop with torch's AdamW on one process."""

    def __init__(self, experiment: Experiment) -> None:
        training = experiment.config.training
        self.loop, self.device, self.max_norm = experiment.loop(), torch.device("cpu"), training.max_grad_norm
        self.objective = experiment.objective
        self.parameters = [parameter for parameter in self.loop.parameters() if parameter.requires_grad]
        self.start = StartWeights(self.parameters)
        self.options = {"betas": training.betas, "eps": training.eps, "weight_decay": training.weight_decay}
        self.rates: list[float] = []
        """The learning rate of each update."""
        self.reset_optimizer()
        self.num_resets = 0
        torch.manual_seed(experiment.config.run.seed)

    def __call__(self, task: Callable[..., Any], *arguments: Any) -> Any:
        assert not self.loop.training, "validation with dropout"
        return self.loop(task, *arguments)

    def at_start(self) -> AbstractContextManager[None]:
        return self.start.in_place()

    def train(self, training: bool = True) -> None:
        self.loop.train(training)

    def update(
        self, batches: Sequence[Tensors], lr: float, asked_to_stop: Callable[[], bool] = lambda: False
    ) -> UpdateResult:
        assert self.loop.training != self.objective.samples, "an update without dropout, or a replay with dropout"
        self.optimizer.zero_grad()
        count = len(self.objective.parts)
        losses = torch.zeros(count + len(self.objective.measures), dtype=torch.float64)
        for batch in batches:
            parts = self.loop(self.objective.loss, batch)
            parts[:count].sum().backward()
            losses += parts.detach()
        total = float(losses.sum())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm))
        if not torch.isfinite(torch.tensor([total, norm])).all():
            raise NonFiniteError(f"loss is {total}, not finite")
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.rates.append(lr)
        return UpdateResult.of(self.objective, losses.tolist(), norm, asked_to_stop())

    def reset_optimizer(self) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters, **self.options)
        self.num_resets = getattr(self, "num_resets", 0) + 1

    def snapshot(self, folder: Path) -> "TorchSnapshot":
        state = {"weights": self.loop.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.loop.value_directions is not None:
            state["directions"] = self.loop.value_directions.weights
        return TorchSnapshot(self, state, random_state())

    def save_state(self, folder: Path, state: dict[str, Any], randoms: dict[str, Any]) -> None:
        torch.save(state, folder / "torch_state.pt")
        write_state(randoms, random_file(folder, 0))

    def load_state(self, folder: Path) -> None:
        state = torch.load(folder / "torch_state.pt", weights_only=False)
        self.loop.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.loop.value_directions is not None:
            self.loop.value_directions.use(state["directions"], self.device, torch.float32)
        set_random_state(read_state(random_file(folder, 0)))

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.loop.model.state_dict().items()}
