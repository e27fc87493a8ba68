"""The objective ``codi`` as an implementation that is compared with recorded numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from recorded_cases import Case
from recorded_objectives import Prompt, Recording
from slow_thoughts import Row
from torch import Tensor, nn

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Collator
from coconut_ds.model.feed import Projection
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.codi import Codi, CodiBatch, view_of
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.objective import CodiConfig


@cache
def base_config() -> Config:
    return compose_config(["objective=codi"])


@dataclass(frozen=True)
class PreparedCodi:
    """See ``comparing_objectives.Prepared``."""

    parameters: Mapping[str, nn.Parameter]
    objective: Codi
    loop: LatentLoop
    batch: CodiBatch

    def parts(self) -> dict[str, Tensor]:
        names = [name.replace("distillation", "distill") for name in self.objective.parts]
        return dict(zip(names, self.loop(self.objective.loss, self.batch), strict=True))


class RecordedCodi:
    """See ``comparing_objectives.Implementation``."""

    def offers(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> PreparedCodi:
        modules, wanted, rows = case.modules(), case.codi_options(), case.codi_rows()
        settings = CodiConfig(
            gamma=wanted.distill_factor,
            teacher_weight=wanted.teacher_factor,
            distance=wanted.distance,
            divide_by_std=wanted.divide_by_std,
        )
        objective = base_config().objective.model_copy(update={"codi": settings})
        config = base_config().model_copy(update={"objective": objective})
        loop = LatentLoop(modules.model, feed=feed_of(modules.projection))
        student = [(row.student, row.student_position) for row in rows]
        teacher = [(row.teacher, row.teacher_position) for row in rows]
        batch = CodiBatch(_view(student), _view(teacher), 1 / len(rows))
        return PreparedCodi(modules.trained(*case.prefixes), Codi(config), loop, batch)

    def tokens(self, recording: Recording, prompt: Prompt) -> list[int]:
        loop = LatentLoop(recording.model(), feed=feed_of(recording.projection()))
        request = Request(Layout(*prompt.row), prompt.max_new_tokens, suppress=(recording.ids["eot"],))
        return list(generate(loop, [request], [recording.ids["eos"]])[0].tokens)

    def readout(self, recording: Recording, prompt: Prompt) -> list[int]:
        raise NotImplementedError("not recorded for CODI")


def feed_of(recorded: nn.Module) -> Projection | None:
    """The feed with the recorded layers, which it shares; None for the identity."""
    if isinstance(recorded, nn.Identity):
        return None
    inner, outer, norm = (recorded.get_submodule(name) for name in ("1", "3", "ln"))
    feed = Projection(*reversed(inner.weight.shape))
    feed.inner, feed.outer, feed.norm = inner, outer, norm
    return feed


def _view(rows: list[tuple[Row, int]]):
    """A view of a micro batch that is the whole update, with the position whose states are compared."""
    layouts = Layouts.of([Layout(*row) for row, _ in rows])
    weight, size = 1 / int(layouts.num_targets.sum()), len(rows)
    most = int(layouts.num_thoughts.max()), int(layouts.num_targets.sum())
    micro = MicroBatch(layouts, [weight] * size, *most, np.arange(size), 1 / size)
    return view_of(Collator(0), micro, np.array([position + 1 for _, position in rows]))
