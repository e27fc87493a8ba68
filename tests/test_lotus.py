"""LOTUS: parts of the loss and gradients equal the slow twin, and recorded numbers; runs resume exactly."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comparing_objectives import compare as compare_recorded
from comparing_objectives import compare_answers
from making_layouts import RAGGED
from making_training import column, record, run_left_alone_and_stopped
from recorded_cases import trusted_cases
from recorded_lotus import RecordedLotus
from recorded_objectives import Recording
from slow_loop import slow_generate
from slow_lotus import LotusOptions, LotusRow, slow_lotus
from tiny_models import make_model
from torch_engine import DROPOUT, tiny_config, tiny_experiment

from coconut_ds import load_reasoner
from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.generation.prompter import Writing
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model import loss
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives import objective_of
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry, plan_update

MARKERS = MarkerIds(start=36, end=37, thought=38)


@dataclass(frozen=True)
class Setting:
    """An epoch of ``RAGGED`` under some configuration."""

    config: Config
    stage: int
    epoch: int = 0

    @property
    def sequences(self) -> Sequences:
        training, method = self.config.training, METHODS[self.config.method.kind]
        return Sequences(training, self.config.run.seed, method, training.curriculum_spec, MARKERS)

    def rows(self) -> list[LotusRow]:
        """The problems as the twin reads them."""
        found = []
        for index, problem in enumerate(RAGGED):
            row = self.sequences.one_for_training(self.epoch, self.stage, index, problem)
            stage = self.sequences.stage_of(self.epoch, self.stage, index, problem)
            found.append(LotusRow(row, self.sequences.method.replaced(problem, stage, self.sequences.spec)))
        return found

    def slow_parts(self, model: torch.nn.Module) -> torch.Tensor:
        """One row after another; each has as many loops as blocks, or the number that the configuration states."""
        lotus, block, rows = self.config.objective.lotus, self.config.training.c_thought, self.rows()
        # Some blocks have no step. Steps that are removed after stage M have no block.
        rows = [row._replace(steps=[*row.steps, (), ()]) for row in rows]
        if not lotus.flat:
            rows = [row._replace(steps=row.steps[: row.row.num_thoughts // block]) for row in rows]
        lengths = [[len(step) if lotus.flat else min(len(step), block) for step in row.steps] for row in rows]
        num_steps = sum(min(sum(own), row.row.num_thoughts) for own, row in zip(lengths, rows, strict=True))
        num_answers = sum(row.row.num_targets for row in rows)
        found = torch.zeros(2)
        for row in rows:
            loops = self.config.method.iterations or row.row.num_thoughts // block
            options = LotusOptions(block, loops, lotus.step_weight, in_loop=lotus.in_loop, flat=lotus.flat)
            parts = slow_lotus(model, [row], options, [1 / num_answers], [1 / max(1, num_steps)])
            found = found + torch.stack([parts["answer"], parts["step"]])
        return found

    def fast_parts(self, loop: LatentLoop, micro: int, world: int) -> torch.Tensor:
        """The sum over the micro batches of all ranks."""
        objective, geometry = objective_of(self.config), BatchGeometry(len(RAGGED), micro, 1, world)
        collator, arrays = Collator(3, self.config.parallel), ProblemArrays([arrays_of(RAGGED)], ())
        examples = objective.examples(self.sequences, self.epoch, self.stage, arrays, range(len(RAGGED)))
        found = torch.zeros(2)
        for rank in range(world):
            plans = [plan_update(view, geometry, rank, "token", examples.views[0]) for view in examples.views]
            for views in zip(*plans, strict=True):
                found = found + objective.loss(loop, objective.collate(collator, examples, views))
        return found


def gradients_of(model: torch.nn.Module, part: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    part.backward(retain_graph=True)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


LOTUS = ("objective=lotus", "c_thought=3", "lotus.step_weight=0.5")


@pytest.mark.parametrize(
    ("family", "way", "stage", "overrides"),
    [
        ("gpt2", "sdpa", 2, ()),
        ("llama", "eager", 2, ("lotus.in_loop=true",)),
        ("qwen3", "checkpointing", 3, ("lotus.in_loop=true",)),
        ("gpt2", "each pass", 3, ("lotus.flat=true",)),
        ("llama", "sdpa", 2, ("pad_latent_to_max=false", "lotus.in_loop=true")),
        ("gpt2", "eager", 1, ("uniform_prob=0.7", "replay_prob=0", "lotus.in_loop=true")),
        ("qwen3", "sdpa", 2, ("iterations=3",)),
        ("llama", "chunks", 2, ("iterations=1",)),
        ("gpt2", "sdpa", 0, ()),
        ("gpt2", "sdpa", 2, ("method=coconut_reversed",)),
        ("llama", "sdpa", 0, ("method=coconut_no_curriculum",)),
    ],
)
def test_parts_and_gradients_equal_the_slow_twin(family, way, stage, overrides, monkeypatch):
    """Ragged rows, with fewer steps than blocks, more, and none; rows with fewer blocks than others; steps that are
    longer than a block; accumulation, and two ranks, whose sums are those of the whole batch."""
    setting = Setting(tiny_config(*LOTUS, *overrides), stage)
    model = make_model(family)
    model.config._attn_implementation = "eager" if way == "eager" else "sdpa"
    monkeypatch.setattr(loss, "LOGITS_AT_A_TIME", 2 * 40 if way == "chunks" else loss.LOGITS_AT_A_TIME)
    loop = LatentLoop(model, way == "checkpointing", defer_gradients=False if way == "each pass" else None)
    slow = setting.slow_parts(model)
    assert (slow[1] == 0) == (stage == 0 and setting.sequences.method.has_curriculum)
    expected = [gradients_of(model, part) for part in slow if part.requires_grad]
    for micro, world in ((2, 1), (1, 2), (5, 1)):
        fast = setting.fast_parts(loop, micro, world)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
        if micro == 5 or world == 2:
            for part, gradients in zip(fast, expected, strict=False):
                for name, found in gradients_of(model, part).items():
                    scale = max(1.0, float(gradients[name].abs().max()))
                    torch.testing.assert_close(found, gradients[name], rtol=1e-3, atol=2e-5 * scale, msg=name)


def test_recorded_numbers_are_reproduced():
    """Each loss, the norm of the gradient of each parameter, and greedy answers of the public code, to 1e-4."""
    recording = Recording(Path(__file__).parent / "parity_data" / "objectives" / "lotus" / "gpt2")
    implementation = RecordedLotus()
    cases = [case for case in trusted_cases(recording) if implementation.offers(case)]
    assert {case.name for case in cases} == {"flat", "in_loop", "long_steps", "ragged_stage2", "stage0"}
    found = compare_recorded(implementation, cases, each_part=False)
    found.add(compare_answers(implementation, recording))
    factor, worst = found.excess()
    assert factor <= 1, worst


def test_a_warning_says_that_many_steps_are_cut():
    """Of the eleven steps, eight have more than one token, five more than two, and three more than three."""
    steps = [problem for problem in RAGGED for _ in range(2)]
    said = {}
    for block in (1, 3, 5):
        for flat in (False, True):
            config = compose_config(
                ["objective=lotus", f"c_thought={block}", f"lotus.flat={flat}", "lotus.in_loop=false"]
            )
            said[block, flat] = objective_of(config).notes(steps)
    assert said.pop((1, False)) == [
        "warning: objective=lotus learns only the first training.c_thought=1 tokens of each step, and 70% of the steps "
        "are longer; set training.c_thought=5, which is enough for 90% of them"
    ]
    assert "thought=3 tokens of each step, and 20% of" in said.pop((3, False))[0]
    assert not any(said.values())


RUN = ("objective=lotus", "c_thought=2", DROPOUT)


def test_a_run_that_was_stopped_and_continued_is_the_run_left_alone(tmp_path):
    """With dropout; the first stage has no thoughts. Its checkpoint thinks as it was trained, with no option given."""
    whole, stopped, _ = run_left_alone_and_stopped(tmp_path, *RUN)
    assert record(stopped) == record(whole)
    answers, steps = (column(whole, f"train/loss_{part}") for part in ("answer", "step"))
    assert [a + b for a, b in zip(answers, steps, strict=True)] == pytest.approx(column(whole, "train/loss"))
    assert [value > 0 for value in steps] == [False] * 3 + [True] * 6
    ends = [one.checkpoint(3) for one in (whole, stopped)]
    for part in ("model.safetensors", "coconut.json"):
        here, there = ((end / part).read_bytes() for end in ends)
        assert here == there, part
    experiment = tiny_experiment(*RUN)
    reasoner = load_reasoner(ends[0])
    assert reasoner.prompter.parallel == experiment.config.parallel == Parallel("looped", None, 2)
    problems = [problem.question for problem in experiment.problems.valid]
    made = reasoner.generate(problems, keep_thoughts=True, max_new_tokens=4)
    model = reasoner.backbone.model
    for question, answer in zip(problems, made, strict=True):
        request = reasoner.prompter.request(reasoner.prompter.encode([question])[0], reasoner.thoughts(), Writing(4))
        assert answer.completion.tokens == slow_generate(model, request, reasoner.prompter.eos_ids[0])
        assert len(reasoner.decode_thoughts(answer)) == 4
    traced = trace_thoughts(reasoner, problems[:1], max_new_tokens=4)[0]
    decoded = reasoner.decode_thoughts(made[0])
    assert [one.decoded.tokens for one in traced.thoughts] == [one.tokens for one in decoded]
