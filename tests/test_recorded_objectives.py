"""The slow twins of CODI, SIM-CoT and LOTUS reproduce numbers recorded from the public implementations."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comparing_objectives import compare, compare_answers
from recorded_cases import Case, trusted_cases
from recorded_objectives import Modules, Recording
from recorded_twins import PARTS, Twins
from slow_codi import CodiWeights, slow_codi
from slow_lotus import slow_lotus
from slow_sim_cot import (
    bracketed,
    coconut_groups,
    coconut_weights,
    codi_groups,
    codi_weights,
    on_coconut,
    on_codi,
    slow_steps,
)
from torch import Tensor

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in (HERE / "parity_data" / "objectives").rglob("expected.json"))
CASES = [case for folder in FOLDERS for case in trusted_cases(Recording(folder))]


def case_named(name: str) -> Case:
    """``codi/gpt2 ragged`` → the case."""
    return next(case for case in CASES if f"{case.recording.name} {case.name}" == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.recording.name}-{case.name}")
def test_losses_and_gradients_are_reproduced(case: Case) -> None:
    """Each part of the loss and the norm of the gradient of each parameter, to 1e-4."""
    factor, worst = compare(Twins(), [case], each_part=False).excess()
    assert factor <= 1, worst


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: Recording(folder).name)
def test_answers_are_reproduced(folder: Path) -> None:
    """Greedy answers are the same, token for token."""
    factor, worst = compare_answers(Twins(), Recording(folder)).excess()
    assert factor == 0, worst


def steps_of(case: Case, modules: Modules, targets: list, weights: list, first_position: int) -> Tensor:
    """The loss of the steps on CODI or on Coconut."""
    if case.recording.objective == "sim_cot_on_codi":
        vectors = on_codi(modules.model, [row.student for row in case.codi_rows()], modules.projection)
    else:
        vectors = on_coconut(modules.model, case.rows(), case.settings["c_thought"])
    return slow_steps(modules.model, modules.decoder, vectors, targets, weights, first_position)


def codi(case: Case, modules: Modules, **changes) -> dict[str, Tensor]:
    """The parts of CODI's loss, with something changed."""
    arguments = {"feed": modules.projection, "options": case.codi_options(), **changes}
    return slow_codi(modules.model, case.codi_rows(), **arguments)


def with_tanh(projection: torch.nn.Module) -> torch.nn.Module:
    """The same parameters with the approximate GELU."""
    return torch.nn.Sequential(projection[0], torch.nn.GELU(approximate="tanh"), projection[2], projection[3])


MISREADINGS: dict[str, tuple[str, Callable[[Case, Modules], dict[str, Tensor]]]] = {
    "a standard deviation for each row": (
        "codi/gpt2 ragged",
        lambda case, modules: codi(case, modules, groups=[[0], [1], [2], [3]]),
    ),
    "without the embedding layer": (
        "codi/gpt2 ragged",
        lambda case, modules: codi(case, modules, options=replace(case.codi_options(), layers=(1, 2))),
    ),
    "approximate GELU": (
        "codi/gpt2 ragged",
        lambda case, modules: codi(case, modules, feed=with_tanh(modules.projection)),
    ),
    "detached thoughts": (
        "codi/gpt2 ragged",
        lambda case, modules: codi(case, modules, feed=lambda states: modules.projection(states).detach()),
    ),
    "decoder's positions from 1 on CODI": (
        "simcot_codi/gpt2 ragged",
        lambda case, modules: {
            **codi(case, modules),
            "step": steps_of(case, modules, case.step_targets(), codi_weights(case.step_targets()), 1),
        },
    ),
    "mean over tokens on Coconut": (
        "simcot_coconut/llama ragged_stage2",
        lambda case, modules: {
            "answer": PARTS["sim_cot_on_coconut"](case, modules)["answer"],
            "step": steps_of(case, modules, case.step_targets(), coconut_weights(case.step_targets(), True), 1),
        },
    ),
    "one pass more": (
        "lotus/gpt2 ragged_stage2",
        lambda case, modules: slow_lotus(modules.model, case.lotus_rows(), replace(case.lotus_options(), loops=3)),
    ),
    "newlines are no targets": (
        "lotus/gpt2 ragged_stage2",
        lambda case, modules: slow_lotus(
            modules.model,
            [row._replace(steps=[step[:-1] for step in row.steps]) for row in case.lotus_rows()],
            case.lotus_options(),
        ),
    ),
}
"""Wrong readings of the definitions: the case that refuses them, and the parts of the loss that they give."""


@pytest.mark.parametrize("reading", MISREADINGS)
def test_a_wrong_reading_is_noticed(reading: str) -> None:
    """The comparison fails for an implementation that differs in one detail."""
    name, parts = MISREADINGS[reading]

    def prepare(case: Case) -> SimpleNamespace:
        modules = case.modules()
        return SimpleNamespace(parameters=modules.trained(*case.prefixes), parts=lambda: parts(case, modules))

    factor, _ = compare(SimpleNamespace(prepare=prepare), [case_named(name)], each_part=False).excess()
    assert factor > 2


def test_micro_batches_are_groups_of_rows() -> None:
    """With a micro batch as a group and weights of the whole batch, the parts are weighted sums over micro batches."""
    case = case_named("codi/gpt2 ragged")
    modules, rows, options = case.modules(), case.codi_rows(), case.codi_options()
    groups = [[0, 1], [2, 3]]
    weights = CodiWeights([0.01, 0.02, 0.03, 0.04], [0.04, 0.03, 0.02, 0.01], [0.1, 0.2, 0.3, 0.4])
    whole = slow_codi(modules.model, rows, modules.projection, options, weights, groups)
    parts = [
        slow_codi(
            modules.model,
            [rows[row] for row in group],
            modules.projection,
            options,
            CodiWeights(*([values[row] for row in group] for values in weights)),
        )
        for group in groups
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts))


@pytest.mark.parametrize("name", ["ragged", "merged", "many_latents"])
def test_the_groups_of_steps_on_codi_are_those_of_the_recording(name: str) -> None:
    case = case_named(f"simcot_codi/gpt2 {name}")
    ids = case.recording.ids
    for row, groups in zip(case.codi_rows(), case.step_targets(), strict=True):
        steps = bracketed(row.teacher.input_ids, ids["step_start"], ids["step_end"])
        assert codi_groups(steps, case.num_thoughts + 1, ids["eos"]) == groups


@pytest.mark.parametrize("name", ["ragged_stage2", "ragged_final"])
def test_the_groups_of_steps_on_coconut_are_those_of_the_recording(name: str) -> None:
    """They follow from the removed steps and the answer."""
    case = case_named(f"simcot_coconut/llama {name}")
    ids, end, end_and_newline, answer_start = case.recording.ids, 3, 26, 15
    for row, removed, groups in zip(
        case.rows(), case.batch["explainable_ids_list"].tolist(), case.step_targets(), strict=True
    ):
        steps = bracketed([end if token == end_and_newline else token for token in removed], [ids["step_start"]], end)
        answer = row.input_ids[row.input_ids.index(answer_start) : -1]
        num_groups, last_stage = row.num_thoughts // case.settings["c_thought"], case.settings["max_latent_stage"]
        assert coconut_groups(steps, answer, num_groups, last_stage, [ids["newline"]], ids["eos"]) == groups


def test_the_command_says_ok_or_what_differs(tmp_path: Path, capsys, monkeypatch) -> None:
    """The last line of ``python tests/parity.py DIR``, and its exit code."""
    import parity

    folder = tmp_path / "lotus" / "gpt2"
    shutil.copytree(HERE / "parity_data" / "objectives" / "lotus" / "gpt2", folder)
    expected = json.loads((folder / "expected.json").read_text())
    expected["cases"], expected["generation"] = expected["cases"][:1], expected["generation"][:1]
    monkeypatch.setattr("sys.argv", ["parity.py", str(tmp_path)])
    for loss_factor, code, last in [(1, 0, "OK"), (1.001, 1, "lotus/gpt2 ragged_stage2: answer: loss: ")]:
        changed = json.loads(json.dumps(expected))
        changed["cases"][0]["loss"]["answer_ce"] *= loss_factor
        (folder / "expected.json").write_text(json.dumps(changed))
        with pytest.raises(SystemExit) as ended:
            parity.main()
        assert ended.value.code == code
        assert capsys.readouterr().out.splitlines()[-1].startswith(last)
