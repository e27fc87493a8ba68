"""``icot``: stepwise internalisation, which removes a few step tokens at a time (Deng et al. 2024, arXiv 2405.14838).

The authors also smooth the number of removed tokens at random. This is not implemented; ``training.replay_prob`` mixes
stages instead.
"""

from typing import ClassVar, Literal

from coconut_ds.methods.base import CurriculumSpec, Method, TokenizedProblem, join


class Icot(Method):
    """Question, **step tokens[r:], answer**. The loss is on the bold parts; r = stage·``tokens_per_epoch``."""

    name: ClassVar[str] = "icot"
    has_curriculum: ClassVar[bool] = True
    epochs_per_stage: ClassVar[int | None] = 1
    unit: ClassVar[Literal["step", "token"]] = "token"

    def num_stages(self, problem: TokenizedProblem, spec: CurriculumSpec) -> int:
        """Number of stages until the last step token is removed."""
        return -(-len(join(problem.steps)) // spec.tokens_per_epoch)

    def final_stage(self, longest: int, spec: CurriculumSpec) -> int:
        """The stage that removes the last step token of the longest problem; M plays no part."""
        return longest

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """All step tokens except the first r = stage·tokens_per_epoch."""
        return join(problem.steps)[stage * spec.tokens_per_epoch :]
