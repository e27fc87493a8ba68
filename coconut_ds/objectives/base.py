"""The interface of an objective: which views of a problem it reads, and its loss, in named parts.

A *view* is one way to write a problem as a sequence. All objectives read the view that the method makes; some read
others too, such as the solution with all of its steps. The views of a problem are always in the same micro batch, at
the same row.

Shapes:
    B  rows of a micro batch
    K  parts of the loss
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.methods.base import Method, TokenizedProblem
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.settings import Config


class Tensors(Protocol):
    """The tensors of a micro batch; a ``Batch``, for example."""

    def to(self, device: torch.device) -> Self:
        """The same tensors on ``device``; the host does not wait for the copy."""


@dataclass(frozen=True)
class Examples:
    """The problems of a global batch, in the order in which they were asked for."""

    views: tuple[Layouts, ...]
    """At least one. The first view decides which problems share a micro batch."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all views; a view with the tokens of another, and other labels, does not count."""
        return sum(map(len, {id(view.input_ids): view.input_ids for view in self.views}.values()))


class Objective(ABC):
    """What is learned, with its settings. It has no other state: what it learns beside the model is in the loop."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the K parts of the loss."""
    measures: tuple[str, ...] = ()
    """Names of further numbers that ``loss`` returns after the parts. They have no gradient; ``logged`` says what the
    record has of them."""
    samples: ClassVar[bool] = False
    """Whether the model samples what it learns from during the update, so that nothing can be prepared ahead."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def thought_targets(self) -> Literal["path", "frontier"] | None:
        """What thoughts learn to predict at their hop (``data.hops``), if this objective reads
        ``ProblemArrays.hops``."""
        return None

    def kept_numbers(self, loop: LatentLoop) -> int:
        """How many numbers, in the type of the model, this objective keeps on each device beside weights."""
        return 0

    @property
    def keeps_start(self) -> bool:
        """Whether the loss needs the weights that the run started from (``Engine.at_start``)."""
        return False

    def auxiliary(self, backbone: Backbone) -> dict[str, nn.Module]:
        """New modules that only training needs, by name; the loss finds them in ``loop.auxiliary``.

        They are trained with the model and stored in the state of the engine, not in the model's folder. Their weights
        are drawn from torch's global generator, which the caller has seeded.
        """
        return {}

    def equip(self, loop: LatentLoop) -> LatentLoop:
        """The loop that is trained, changed in place before the engine sees it, if a subclass needs that."""
        return loop

    def views(self, method: Method) -> tuple[Method, ...]:
        """The methods that write the views of a problem; the first one is ``method``, that of the run."""
        return (method,)

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> Examples:
        """The problems with these indices, as sequences.

        A pure function of its arguments, so that examples may be made ahead of time and in another thread.

        Args:
            sequences: makes sequences under the method.
            epoch: counted from 0.
            stage: stage of the epoch.
            problems: the epoch's training set.
            indices: the problems of a global batch.
        """
        methods = self.views(sequences.method)
        return Examples(tuple(sequences.under(one).for_training(epoch, stage, problems, indices) for one in methods))

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> Tensors:
        """The tensors of one micro batch, in the memory of the host.

        Args:
            collator: makes the tensors of one view.
            examples: the result of ``examples`` for the global batch.
            views: the rows of this micro batch in each view.
        """
        (view,) = views
        return collator.collate(view)

    def notes(self, problems: Sequence[TokenizedProblem]) -> list[str]:
        """Lines for the log about what this objective does with the training problems; often nothing."""
        return []

    def logged(self, measures: Mapping[str, float]) -> dict[str, float]:
        """What the record has of the measures of an update, by name."""
        return dict(measures)

    @abstractmethod
    def loss(self, loop: LatentLoop, batch: Any) -> Tensor:
        """The K parts of the loss of a micro batch, each with its factor, in fp32. The loss is their sum.

        The measures follow the parts. Like these, they are added up over micro batches and ranks.

        All ranks call it with batches that need the same passes.

        Args:
            loop: the model.
            batch: the result of ``collate``, on the loop's device.
        """
