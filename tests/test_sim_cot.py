"""SIM-CoT: its fast loss equals the slow twin, its decoder learns in every situation, and it stays out of the model."""

from pathlib import Path

import pytest
import torch
from comparing_objectives import compare
from making_config import refusal
from making_sim_cot import EOS, MARKERS, NUM_PROBLEMS, ON_CODI, Setting, make_problems
from making_training import record, train
from recorded_cases import Case, trusted_cases
from recorded_objectives import Recording
from recorded_sim_cot import RecordedSimCot
from safetensors.torch import load_file
from tiny_models import make_model
from torch import Tensor
from torch_engine import run_folder, tiny_experiment

from coconut_ds.errors import ModelError
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, join
from coconut_ds.model.collate import Collator
from coconut_ds.model.lora import add_adapters
from coconut_ds.objectives.sim_cot import DECODER
from coconut_ds.objectives.step_decoder import build_step_decoder
from coconut_ds.objectives.step_targets import group_steps
from coconut_ds.settings import LoraConfig, SimCotConfig
from coconut_ds.training.batches import BatchGeometry, plan_update

RECORDED = [
    case
    for path in sorted((Path(__file__).parent / "parity_data" / "objectives").glob("simcot_*/*/expected.json"))
    for case in trusted_cases(Recording(path.parent))
]


def test_the_decoder_reads_no_position_beyond_its_context() -> None:
    """On CUDA, widths are rounded up."""
    setting = Setting.of("gpt2", 4)
    plans = [
        plan_update(view, BatchGeometry(NUM_PROBLEMS, NUM_PROBLEMS, 1, 1), 0, "token")
        for view in setting.examples.views
    ]
    widths = []
    for multiple, context in ((1, 64), (64, 64), (64, 15), (64, 5)):
        batch = setting.objective.collate(
            Collator(EOS, None, multiple, context), setting.examples, [one[0] for one in plans]
        )
        widths.append(batch.steps.inputs.ids.shape[1])
    # The decoder's positions begin at 1, with the two thoughts of a group.
    assert widths == [widths[0], 16, 12, widths[0]]
    assert widths[0] < 12


@pytest.mark.parametrize(
    ("family", "stage", "overrides"),
    [
        ("gpt2", 3, ("sim_cot.step_reduction=row", "uniform_prob=0.6")),
        ("gpt2", 2, ("sim_cot.decoder_layers=1", "sim_cot.missing_step=nothing", "activation_checkpointing=true")),
        ("llama", 4, ("sim_cot.step_reduction=thought", "lora.rank=2", "lora.alpha=2.0", "sim_cot.step_factor=0.3")),
        ("llama", 3, ("pad_latent_to_max=false", "sim_cot.decoder_width=16", "sim_cot.decoder_init=random")),
        ("qwen3", 3, ("uniform_prob=0.6", "sim_cot.step_reduction=thought", "sim_cot.missing_step=nothing")),
        ("gpt2", 0, (*ON_CODI, "max_latent_stage=1")),
        ("llama", 0, (*ON_CODI, "max_latent_stage=5", "lora.rank=2", "lora.alpha=2.0")),
    ],
)
def test_both_parts_and_all_gradients_equal_the_slow_twin_with_accumulation_and_two_ranks(
    family: str, stage: int, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For problems without, with fewer and with more steps than groups, in ragged rows; a rank gets a copy, and logits
    are computed in several chunks."""
    monkeypatch.setattr("coconut_ds.model.loss.LOGITS_AT_A_TIME", 40 * 6)
    setting = Setting.of(family, stage, *overrides)
    setting.check_equal(setting.slow(), setting.fast(), setting.fast(micro=2, world=2))


def test_the_means_are_those_of_each_micro_batch_under_the_reductions_of_the_reference() -> None:
    """Micro batches are then taken in the order of the problems."""
    setting = Setting.of("gpt2", 4, "loss_reduction=reference")
    micro_batches = [range(start, min(start + 3, NUM_PROBLEMS)) for start in range(0, NUM_PROBLEMS, 3)]
    slow = torch.stack([setting.slow(rows) for rows in micro_batches]).mean(dim=0)
    setting.check_equal(slow, setting.fast(micro=3))


@pytest.mark.parametrize(
    ("stage", "overrides", "decodes"),
    [(0, (), False), (3, ("sim_cot.from_stage=4",), False), (4, ("sim_cot.from_stage=4", "replay_prob=1.0"), True)],
)
def test_the_decoder_runs_and_gets_a_gradient_where_there_is_nothing_to_decode(
    stage: int, overrides: tuple[str, ...], decodes: bool
) -> None:
    """At stage 0, before the decoder's first stage, and in micro batches of one row without thoughts."""
    setting = Setting.of("llama", stage, *overrides)
    parts = setting.fast(micro=1, world=2)
    found = setting.gradients(parts)
    assert None not in found.values()
    assert (parts[1] > 0) == decodes
    learns = [name.startswith("auxiliary") for name, gradient in found.items() if gradient.any()]
    assert any(learns) == decodes


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case.recording.name}-{case.name}")
def test_recorded_numbers_are_reproduced(case: Case) -> None:
    """Each part of the loss and the norm of the gradient of each parameter, to 1e-4."""
    factor, worst = compare(RecordedSimCot(), [case], each_part=False).excess()
    assert factor <= 1, worst


def test_groups_get_a_step_each_the_last_one_the_rest_and_missing_ones_the_answer_or_nothing() -> None:
    steps = ([1], [2, 3], [4])
    assert group_steps(steps, 3, [9]) == [[1, 9], [2, 3, 9], [4, 9]]
    assert group_steps(steps, 2, [9], [7, 9]) == [[1, 9], [2, 3, 4, 9]]
    assert group_steps(steps, 1, [9]) == [[1, 2, 3, 4, 9]]
    assert group_steps(steps, 5, [9], [7, 9]) == [[1, 9], [2, 3, 9], [4, 9], [7, 9], [7, 9]]
    assert group_steps((), 2, [9]) == [[], []]
    assert group_steps(steps, 0, [9]) == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_decoder_starts_as_the_first_layers_of_the_model_with_its_norm_and_head(family: str) -> None:
    """With a tied head and an untied one, under adapters; its own weights are its own, and all of them learn."""
    model = make_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, MARKERS, LoraConfig(rank=2))
    decoder = build_step_decoder(model, SimCotConfig(decoder_layers=1), 1, False)
    named = dict(decoder.model.named_parameters())
    assert all(torch.equal(parameter, before[name]) and parameter.requires_grad for name, parameter in named.items())
    assert not {id(parameter) for parameter in named.values()} & {id(parameter) for parameter in model.parameters()}
    other = [name for name in before if ".1." in name or (family == "llama" and "embed" in name)]
    assert not set(other) & named.keys()
    random = build_step_decoder(model, SimCotConfig(decoder_layers=1, decoder_init="random"), 1, False)
    assert all(not torch.equal(p, named[name]) for name, p in random.model.named_parameters() if p.dim() == 2)


def test_a_decoder_that_no_model_can_have_is_refused() -> None:
    model = make_model("gpt2")
    with pytest.raises(ModelError, match=r"decoder_layers=3: the model has 2 layers, .* set it to at most 2"):
        build_step_decoder(model, SimCotConfig(decoder_layers=3), 1, False)
    with pytest.raises(ModelError, match="decoder_width=30: no GPT2LMHeadModel can have this width"):
        build_step_decoder(model, SimCotConfig(decoder_width=30, decoder_init="random"), 1, False)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=cot"], "method.kind=cot has no thoughts; set method=coconut"),
        (["method=pause_as_thought"], "method.kind=pause_as_thought has no thoughts"),
        (["c_thought=0"], "with training.c_thought=0 there are none"),
        (["max_latent_stage=0"], "with training.max_latent_stage=0 there are none"),
        (["thinking=jacobi"], "set method.thinking=sequential"),
        (["thinking=looped"], "method.thinking=looped does not compute; set method.thinking=sequential"),
        (["sim_cot.from_stage=8"], "no stage is later than 7, so the decoder would never learn"),
        (
            ["num_epochs=11", "epochs_per_stage=5", "sim_cot.from_stage=3"],
            "in training.num_epochs=11 epochs no stage is",
        ),
        (["advance=accuracy", "num_epochs=9", "min_epochs_per_stage=4", "sim_cot.from_stage=3"], "is later than 2,"),
        (["stage_switches=[1,2,99]", "num_epochs=99", "sim_cot.from_stage=3"], "at most 2"),
        (["method=coconut_no_curriculum", "sim_cot.from_stage=1"], "has only stage 0"),
        (["sim_cot.decoder_layers=0"], "objective.sim_cot.decoder_layers: found 0"),
        (["sim_cot.decoder_width=8"], "set objective.sim_cot.decoder_init=random"),
        (["sim_cot.step_factor=0"], "step_factor"),
        (["objective=sim_cot_codi", "feed=identity", "method=pause"], "method.kind=pause has no thoughts"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_type(overrides: list[str], words: str) -> None:
    assert words in refusal(["objective=sim_cot", "data=synthetic_tiny", *overrides])


def test_the_decoder_is_trained_and_resumed_but_is_not_in_the_model(tmp_path) -> None:
    """A run of three epochs equals one that was launched twice, bit for bit."""
    overrides = ("objective=sim_cot", "sim_cot.decoder_layers=1")
    whole, resumed = (run_folder(tmp_path / name) for name in ("whole", "resumed"))
    _, engine = train(whole, *overrides)
    train(resumed, *overrides, "num_epochs=2")
    _, second = train(resumed, *overrides)
    assert record(whole) == record(resumed)
    assert all(torch.equal(one, other) for one, other in zip(engine.parameters, second.parameters, strict=True))
    start = tiny_experiment(*overrides).loop().auxiliary[DECODER].state_dict()
    learned = engine.loop.auxiliary[DECODER].state_dict()
    assert all(not torch.equal(learned[name], value) for name, value in start.items() if value.dim() == 2)
    updates = [line for line in record(whole) if "train/loss" in line]
    for line in updates:
        assert line["train/loss"] == pytest.approx(line["train/loss_likelihood"] + line["train/loss_step"])
        # Stage 0 has no thoughts.
        assert (line["train/loss_step"] > 0) == (line["train/stage"] > 0)
    saved = load_file(whole.checkpoints()[0] / "model.safetensors")
    assert saved.keys() == load_of_likelihood(tmp_path).keys()


def load_of_likelihood(folder) -> dict[str, Tensor]:
    own = run_folder(folder / "likelihood")
    train(own, "num_epochs=1")
    return load_file(own.checkpoints()[0] / "model.safetensors")


@pytest.mark.parametrize("method", ["coconut", "coconut_no_curriculum", "coconut_reversed"])
def test_a_step_is_either_written_or_replaced(method: str) -> None:
    problem, spec = make_problems()[4], CurriculumSpec(1, 2)
    for stage in range(4):
        written, replaced = (
            METHODS[method].written(problem, stage, spec),
            METHODS[method].replaced(problem, stage, spec),
        )
        parts = [written, join(replaced)]
        assert join(problem.steps) == join(parts if method == "coconut_reversed" else reversed(parts)), stage
