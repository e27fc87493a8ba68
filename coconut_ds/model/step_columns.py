"""Computes the step columns of a batch, where its thoughts are, and the rest: one after another, or all at once.

Shapes:
    B  rows (sequences) in the batch
    L  columns of the steps; each holds a thought, or a token in rows that have fewer thoughts
    R  columns of the rest
    D  hidden size
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import LatentInputs
from coconut_ds.model.passes import Passes
from coconut_ds.model.thought_noise import ThoughtNoise


@dataclass(frozen=True, eq=False)
class StepColumns:
    """The L step columns and the R columns of the rest, behind a prefix that has been encoded."""

    inputs: LatentInputs
    """The batch; ``parallel`` says how thoughts are computed."""
    passes: Passes
    """They have encoded the prefix."""
    steps: Callable[[], Tensor]
    """Returns the embeddings [B, L, D] of the step columns."""
    rest: Callable[[], Tensor]
    """Returns the embeddings [B, R, D] of the rest."""
    fed: Callable[[Tensor], Tensor]
    """What states become when they are fed back (``LatentLoop.fed``)."""
    is_fp32: bool
    """Whether the model computes in fp32."""
    noise: ThoughtNoise | None = None
    """Changes the inputs at the positions of thoughts."""

    @property
    def start(self) -> int:
        """The first step column."""
        return self.inputs.prefix_ids.shape[1]

    def states(self, state: Tensor, rounds: list[Tensor] | None = None) -> list[Tensor]:
        """The states of all these columns, in parts of dimension 1.

        Args:
            state: [B, 1, D] each row's last state in the prefix, that is its first thought.
            rounds: see ``LatentLoop.encode``.
        """
        parallel = self.inputs.parallel
        if parallel is None:
            return self._sequential(state)
        return self._jacobi(parallel, state) if parallel.kind == "jacobi" else self._looped(parallel, rounds)

    def _noisy(self, embeds: Tensor, first: int = 0) -> Tensor:
        """Input embeddings [B, Q, D] of the step columns from ``first`` on, with the noise where they are thoughts."""
        if self.noise is None or not self.noise.changes_thoughts:
            return embeds
        thought = self.inputs.is_thought[:, first : first + embeds.shape[1], None]
        return torch.where(thought, self.noise.on_columns(embeds, first), embeds)

    def _sequential(self, state: Tensor) -> list[Tensor]:
        """Runs one pass for each of the L step columns, and one for the rest."""
        embedded, states = self.steps(), [state]
        count = embedded.shape[1]
        for step in range(count):
            thought = self.inputs.is_thought[:, step, None, None]
            embeds = torch.where(thought, self.fed(states[-1]), embedded[:, step : step + 1])
            embeds = self._noisy(embeds, step)
            if step == count - 1 and not self.is_fp32:
                # No thought depends on the state of the last step, so the rest joins its pass. fp32 runs keep a pass
                # for each, since products of other sizes may round otherwise.
                embeds = torch.cat([embeds, self.rest()], dim=1)
            states.append(self.passes.later(embeds, self.start + step))
        if self.is_fp32:
            states.append(self.passes.later(self.rest(), self.start + count))
        return states[1:]

    def _jacobi(self, parallel: Parallel, state: Tensor) -> list[Tensor]:
        """Computes all L step columns together by Jacobi iteration (PCCoT, arXiv 2506.18582), and then the rest.

        The first thought is ``state``; the initial guess for the inputs of the others is the embedding of the thought
        marker. Each pass computes all L positions; its states, shifted by one position, are the thoughts that the next
        pass reads. After t passes, the first t states are those that ``_sequential`` would compute.
        """
        embedded, thought = self.steps(), self.inputs.is_thought.unsqueeze(-1)
        count, first = embedded.shape[1], self.fed(state)
        embeds = torch.cat([torch.where(thought[:, :1], first, embedded[:, :1]), embedded[:, 1:]], dim=1)
        states = self.passes.later(self._noisy(embeds), self.start, again=True)
        for _ in range(parallel.num_passes(count) - 1):
            embeds = torch.where(thought, torch.cat([first, self.fed(states[:, :-1])], dim=1), embedded)
            states = self.passes.later(self._noisy(embeds), self.start, again=True)
        return [states, self.passes.later(self.rest(), self.start + count)]

    def _looped(self, parallel: Parallel, rounds: list[Tensor] | None) -> list[Tensor]:
        """Computes all L step columns together, once and then in each round again (LOTUS, arXiv 2606.31779).

        The input of a thought is the embedding e of its marker at first, and e plus the thought's own state of the pass
        before in each round. The last round includes the rest. If there is one round for each block of thoughts, rows
        with fewer blocks than others make fewer rounds: their inputs then stay as they are, so that the result of a row
        does not depend on the other rows.
        """
        embedded, thought = self.steps(), self.inputs.is_thought.unsqueeze(-1)
        count, number = embedded.shape[1], parallel.rounds(embedded.shape[1])
        own, block = thought.sum(dim=1, keepdim=True), parallel.block if parallel.iterations is None else 0
        embeds, states = embedded, self.passes.later(self._noisy(embedded), self.start, again=True)
        for done in range(number):
            embeds = torch.where(thought & (own > done * block), embedded + self.fed(states), embeds)
            columns = self._noisy(embeds)
            columns = torch.cat([columns, self.rest()], dim=1) if done == number - 1 else columns
            states = self.passes.later(columns, self.start, again=True)
            if rounds is not None:
                rounds.append(states[:, :count])
        return [states]
