"""``icot``: stepwise internalisation, which removes the steps token by token (Deng et al. 2024, arXiv 2405.14838).

Not here: the smoothing of the number of removed tokens that its authors add; ``replay_prob`` mixes stages instead.
"""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method, TokenizedProblem, join


class Icot(Method):
    """Q **(tokens of s)[r:] A**, r growing by ``tokens_per_epoch`` from one stage to the next."""

    name: ClassVar[str] = "icot"
    has_curriculum: ClassVar[bool] = True
    epochs_per_stage: ClassVar[int | None] = 1

    def num_stages(self, problem: TokenizedProblem, spec: CurriculumSpec) -> int:
        """Stages until the last token of the steps is gone."""
        return -(-len(join(problem.steps)) // spec.tokens_per_epoch)

    def final_stage(self, longest: int, spec: CurriculumSpec) -> int:
        """M plays no part: the longest problem sets the end."""
        return longest

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """All step tokens but the first r."""
        return join(problem.steps)[stage * spec.tokens_per_epoch :]
