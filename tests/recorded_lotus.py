"""The objective ``lotus`` as an implementation that is compared with recorded numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from recorded_cases import Case
from recorded_objectives import Prompt, Recording
from recorded_twins import lotus_options
from torch import Tensor, nn

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Request
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.layouts import Layouts
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import Collator, collate
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives.base import Examples
from coconut_ds.objectives.lotus import Lotus, LotusBatch, with_step_labels
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry, plan_update


@dataclass(frozen=True)
class PreparedLotus:
    """See ``comparing_objectives.Prepared``."""

    parameters: Mapping[str, nn.Parameter]
    objective: Lotus
    loop: LatentLoop
    batch: LotusBatch

    def parts(self) -> dict[str, Tensor]:
        return dict(zip(self.objective.parts, self.loop(self.objective.loss, self.batch), strict=True))


class RecordedLotus:
    """See ``comparing_objectives.Implementation``."""

    def offers(self, case: Case) -> bool:
        """Not the terms ``codi`` and ``ia`` of the public code, nor states that replace the input of a position."""
        terms = case.settings["codi_loss_weight"], case.settings["inter_answer_loss_weight"]
        return not any(terms) and not case.lotus_options().replace

    def prepare(self, case: Case) -> PreparedLotus:
        settings, rows, options = case.settings, case.lotus_rows(), case.lotus_options()
        config = compose_config(
            [
                "objective=lotus",
                f"c_thought={options.block}",
                f"max_latent_stage={settings['max_latent_stage']}",
                f"iterations={options.loops or 'null'}",
                f"lotus.step_weight={options.step_factor}",
                f"lotus.in_loop={str(options.in_loop).lower()}",
                f"lotus.flat={str(options.flat).lower()}",
            ]
        )
        modules, objective = case.modules(), Lotus(config)
        written = Layouts.of([Layout(*row.row) for row in rows])
        steps = with_step_labels(written, [row.steps for row in rows], options.block, options.flat)
        examples, geometry = Examples((written, steps)), BatchGeometry(len(rows), len(rows), 1, 1)
        views = [plan_update(view, geometry, 0, "token", written)[0] for view in examples.views]
        batch = objective.collate(Collator(0, config.parallel), examples, views)
        return PreparedLotus(modules.trained(*case.prefixes), objective, LatentLoop(modules.model), batch)

    def tokens(self, recording: Recording, prompt: Prompt) -> list[int]:
        at_once = AtOnce(_parallel(recording), recording.ids["latent"])
        request = Request(Layout(*prompt.row), prompt.max_new_tokens, at_once=at_once)
        return list(generate(LatentLoop(recording.model()), [request], [recording.ids["eos"]])[0].tokens)

    def readout(self, recording: Recording, prompt: Prompt) -> list[int]:
        loop, row = LatentLoop(recording.model()), Layout(*prompt.row)
        inputs, _ = collate([row], [1.0], row.num_thoughts, 0, parallel=_parallel(recording))
        states = loop.encode(inputs)[0, row.first_thought - 1 : row.first_thought + row.num_thoughts]
        return loop.head(states).argmax(-1).tolist()


def _parallel(recording: Recording) -> Parallel:
    """How the recorded answers think."""
    return Parallel("looped", lotus_options(recording).loops)
