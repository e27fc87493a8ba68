"""Supervised thoughts: parts of the loss, gradients and measures equal the slow twin; runs resume exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from making_config import refusal
from making_layouts import RAGGED
from making_training import column, record, run_left_alone_and_stopped
from slow_supervised_thoughts import Asked, slow_supervised_thoughts
from tiny_models import make_model
from torch_engine import DROPOUT, tiny_config

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import Hop, ProblemArrays, arrays_of
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import Layout
from coconut_ds.model import loss
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives import objective_of
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry, plan_update

MARKERS = MarkerIds(start=36, end=37, thought=38, pause=39)
HOPS = [
    [Hop({5: 1.0}, {5: 0.5, 0: 0.25, 30: 0.25}), Hop({7: 1.0}, {7: 1.0})],
    # No node is three edges away: the path is not a shortest one.
    [Hop({12: 1.0}, {12: 0.5, 13: 0.5}), Hop({14: 1.0}, {1: 0.4, 2: 0.4, 14: 0.2}), Hop({16: 1.0}, {})],
    [],
    [Hop({24: 1.0}, {24: 0.5, 25: 0.5})],
    [Hop({token: 1.0}, {token: 0.75, 3: 0.25}) for token in (27, 31, 33, 34)],
]


@dataclass(frozen=True)
class Setting:
    """An epoch of ``RAGGED`` under some configuration."""

    config: Config
    stage: int

    @property
    def sequences(self) -> Sequences:
        training, method = self.config.training, METHODS[self.config.method.kind]
        return Sequences(training, self.config.run.seed, method, training.curriculum_spec, MARKERS)

    def asked(self, row: Layout, hops: Sequence[Hop]) -> list[Asked]:
        """What the states of a row must predict: it has as many thoughts or pauses as its tokens say."""
        settings, size = self.config.objective.supervised_thoughts, self.config.training.c_thought
        places = [place for place, token in enumerate(row.input_ids) if token in (MARKERS.thought, MARKERS.pause)]
        found = []
        for number, place in enumerate(places):
            hop, within = number // size, number % size
            wanted = {"last": within == size - 1, "first": within == 0, "all": True}[settings.thought_of_step]
            if wanted and hop < len(hops):
                target = hops[hop].path if settings.thought_targets == "path" else hops[hop].frontier
                if target:
                    found.append(Asked(place, hop + 1, target, hops[hop].frontier))
        return found

    def slow(self, model: torch.nn.Module) -> tuple[torch.Tensor, list[float]]:
        """The two parts, and the sums of the measures and the count of each hop."""
        rows = [self.sequences.one_for_training(0, self.stage, index, problem) for index, problem in enumerate(RAGGED)]
        asked = [self.asked(row, hops) for row, hops in zip(rows, HOPS, strict=True)]
        weight = self.config.objective.supervised_thoughts.thought_weight
        parts, measured = slow_supervised_thoughts(model, rows, asked, weight)
        sums = []
        for hop in range(1, self.config.training.max_latent_stage + 1):
            values = measured[hop]
            sums += [*(sum(one[i] for one in values) for i in range(3)), len(values)]
        return parts, sums

    def fast(self, loop: LatentLoop, micro: int, world: int) -> torch.Tensor:
        """The sum over the micro batches of all ranks."""
        objective, geometry = objective_of(self.config), BatchGeometry(len(RAGGED), micro, 1, world)
        arrays = ProblemArrays([arrays_of(RAGGED)], (), HOPS.__getitem__)
        examples = objective.examples(self.sequences, 0, self.stage, arrays, range(len(RAGGED)))
        found = torch.zeros(2 + len(objective.measures))
        for rank in range(world):
            plans = [plan_update(view, geometry, rank, "token", examples.views[0]) for view in examples.views]
            for views in zip(*plans, strict=True):
                found = found + objective.loss(loop, objective.collate(Collator(3), examples, views))
        return found


def gradients_of(model: torch.nn.Module, part: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    part.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


THOUGHTS = (
    "objective=supervised_thoughts",
    "c_thought=2",
    "max_latent_stage=3",
    "supervised_thoughts.thought_weight=0.7",
)


@pytest.mark.parametrize(
    ("family", "way", "stage", "overrides"),
    [
        ("gpt2", "sdpa", 2, ()),
        ("llama", "chunks", 3, ("supervised_thoughts.thought_of_step=all", "supervised_thoughts.thought_targets=path")),
        ("qwen3", "checkpointing", 4, ("supervised_thoughts.thought_of_step=first", "pad_latent_to_max=false")),
        ("gpt2", "sdpa", 1, ("uniform_prob=0.7", "replay_prob=0", "c_thought=1")),
        ("llama", "sdpa", 0, ("replay_prob=0",)),
        ("gpt2", "sdpa", 3, ("method=pause_as_thought",)),
        ("llama", "chunks", 0, ("method=pause", "supervised_thoughts.thought_of_step=all")),
    ],
)
def test_parts_gradients_and_measures_equal_the_slow_twin(family, way, stage, overrides, monkeypatch):
    """Ragged rows, with fewer steps than thoughts, more, and none; several thoughts a step; accumulation, and two ranks
    of which one repeats a problem, whose sums are those of the whole batch."""
    setting = Setting(tiny_config(*THOUGHTS, *overrides), stage)
    model = make_model(family)
    monkeypatch.setattr(loss, "LOGITS_AT_A_TIME", 4 * 40 if way == "chunks" else loss.LOGITS_AT_A_TIME)
    loop = LatentLoop(model, way == "checkpointing")
    slow, measures = setting.slow(model)
    assert (slow[1] == 0) == (stage == 0 and "replay_prob=0" in overrides)
    # Both parts have a weight of their own, so that a gradient of one cannot make up for the other.
    expected = gradients_of(model, slow[0] + 2 * slow[1])
    for micro, world in ((2, 2), (5, 1)):
        fast = setting.fast(loop, micro, world)
        torch.testing.assert_close(fast[:2], slow, rtol=1e-5, atol=1e-6)
        assert fast[2:].tolist() == pytest.approx(measures, rel=1e-4, abs=1e-5)
        for name, found in gradients_of(model, fast[0] + 2 * fast[1]).items():
            scale = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=2e-5 * scale, msg=name)


def test_the_record_has_means_of_the_hops_that_had_targets():
    objective = objective_of(tiny_config(*THOUGHTS))
    measures = dict.fromkeys(objective.measures, 0.0)
    measures |= {"hop_2_loss": 6.0, "hop_2_in_frontier": 3.0, "hop_2_mass": 2.0, "hop_2_count": 4.0}
    assert objective.logged(measures) == {"hop_2_loss": 1.5, "hop_2_in_frontier": 0.75, "hop_2_mass": 0.5}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=cot"], "method.kind=cot has no thoughts; set method=coconut, or method=pause_as_thought"),
        (["method=no_thoughts"], "method.kind=no_thoughts has no thoughts"),
        (["c_thought=0"], "with training.c_thought=0 there are none; set them to 1 or more"),
        (["method=pause", "max_latent_stage=0"], "with training.max_latent_stage=0 there are none"),
        (["method=coconut_reversed"], "thoughts replace the last steps; set method=coconut"),
        (["thinking=jacobi"], "method.thinking=jacobi does not compute; set method.thinking=sequential"),
        (["thinking=looped"], "or objective=lotus, which reads the states of looped thinking"),
        (["supervised_thoughts.thought_weight=0"], "objective.supervised_thoughts.thought_weight"),
        (
            ["objective=likelihood", "supervised_thoughts.thought_targets=path"],
            "does not read this; set objective=supervised_thoughts",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_type(overrides: list[str], words: str) -> None:
    assert words in refusal(["objective=supervised_thoughts", *overrides])


def test_pause_tokens_may_come_with_any_way_of_thinking_which_they_do_not_use():
    assert tiny_config("objective=supervised_thoughts", "method=pause", "thinking=jacobi")


RUN = ("objective=supervised_thoughts", "data=synthetic_tiny", "num_epochs=4", DROPOUT)
BY_HOP = ("advance=accuracy", "advance_metric=mass", "advance_at=0.000001", "max_epochs_per_stage=2")
"""A share that a model reaches at any hop before it has learned anything, and accuracy does not."""


def test_a_run_that_was_stopped_and_continued_is_the_run_left_alone(tmp_path: Path) -> None:
    """With dropout, and stages that end by a metric by hop. Stage 0 has no thoughts, so it ends by accuracy, here after
    its longest duration."""
    whole, stopped, _ = run_left_alone_and_stopped(tmp_path, *RUN, *BY_HOP)
    lines = record(whole)
    assert record(stopped) == lines
    updates = [line for line in lines if "train/loss" in line]
    for line in updates:
        assert line["train/loss"] == pytest.approx(line["train/loss_likelihood"] + line["train/loss_thoughts"])
    for kind, times in (("train", 3), ("eval", 1)):
        hops = [
            sorted(key.removeprefix(f"{kind}/") for key in line if key.startswith(f"{kind}/hop_"))
            for line in lines
            if f"{kind}/loss" in line
        ]
        names = [[f"hop_{hop}_{name}" for name in ("in_frontier", "loss", "mass")] for hop in (1, 2)]
        assert hops == [[]] * 2 * times + [names[0]] * times + [[*names[0], *names[1]]] * times
    assert column(whole, "eval/stage") == [0, 0, 1, 2]
    assert all(0 <= value <= 1 for key, value in updates[-1].items() if key.endswith(("_in_frontier", "_mass")))
