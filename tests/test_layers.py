"""Imports go one way, heavy packages stay in one file each, and configuration and data load without torch."""

import subprocess
import sys

import pytest
from imports import ROOT, check_no_cycle, graph, imported, importers, modules

# A package imports from the floors above its own, never from its own floor or below.
FLOORS = (
    "strict_json errors",
    "cli files formats methods noise_kinds parts",
    "packages temporary",
    "scoring",
    "distributed hub settings",
    "runs",
    "results",
    "data",
    "model",
    "generation objectives",
    "reasoner",
    "evaluation hf importing lm_model",
    "lm_harness probing training",
    "memory studies train evaluate",
    "plan probe push demo sweep",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
# Needs torch or transformers; everything else loads without them, so that a wrong command line is refused at once.
HEAVY = (
    *(f"distributed.{name}" for name in ("agreement", "background", "held_weights", "peers", "process_group", "ranks")),
    *(f"distributed.{name}" for name in ("random_states", "start_weights", "state_file", "status_board", "watchdog")),
    *("distributed.zero", "runs.launch_facts", "runs.naming"),
    *("hub", "hf", "model", "generation", "objectives", "reasoner", "lm_model", "probing", "memory"),
    *(f"importing.{name}" for name in ("codi", "convert", "published", "tensors")),
    *(
        f"data.{name}"
        for name in ("chat", "encoding", "hops", "tokenizer_files", "tokens", "token_bytes", "token_table", "report")
    ),
    *(
        f"evaluation.{name}"
        for name in ("prediction", "evaluator", "hop_scores", "scores", "samples", "partial", "session")
    ),
    *(f"evaluation.{name}" for name in ("identity", "job", "loading", "model_card", "report")),
    *(f"training.{name}" for name in ("engine", "wandb_mirror", "problems", "experiment", "ingredients")),
    *(f"training.{name}" for name in ("step_numbers", "update_result", "rollouts", "iterations", "progress_bar")),
    *(f"training.{name}" for name in ("engine_state", "convert_state", "checkpoint_writer")),
    *(f"training.{name}" for name in ("claim", "run_record", "prefetch", "saver", "trainer", "launch")),
)
ONLY_IN: dict[str, set[str]] = {
    "deepspeed": {"coconut_ds.distributed.zero"},
    "peft": {"coconut_ds.model.lora"},
    "liger_kernel": {"coconut_ds.model.liger"},
    "triton": {"coconut_ds.model.attention_kernels", "coconut_ds.model.triton_attention"},
    "wandb": {"coconut_ds.training.wandb_mirror"},
    "accelerate": {"coconut_ds.training.trackers"},
    "hydra": {"coconut_ds.settings.composition", "coconut_ds.studies.sweep"},
    "omegaconf": {"coconut_ds.settings.composition", "coconut_ds.studies.sweep"},
    "lm_eval": {"coconut_ds.lm_model.model"},
    "datasets": {"coconut_ds.data.published"},
    "math_verify": {"coconut_ds.scoring.mathematics"},
    "gradio": set(),
    "plotly": set(),
    "serve": set(),
    "tests": set(),
}
MODULES = modules("coconut_ds")


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return graph(MODULES)


def package(name: str) -> str:
    """``coconut_ds.model.loss`` → ``model``; "" for the top package itself."""
    return [*name.split("."), ""][1]


def test_every_package_has_its_floor() -> None:
    assert set(FLOOR) == {package(name) for name in MODULES} - {""}


def test_no_package_imports_its_own_floor_or_one_below(edges: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in edges.items()
        for target in targets
        # The top package offers load_reasoner, and imports it only when it is used.
        if name != "coconut_ds" and target != "coconut_ds" and package(name) != package(target)
        if FLOOR[package(target)] >= FLOOR[package(name)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle(edges: dict[str, set[str]]) -> None:
    check_no_cycle({name: targets - {"coconut_ds"} for name, targets in edges.items()})


@pytest.mark.parametrize("outside", ONLY_IN)
def test_a_heavy_or_outer_package_is_imported_by_its_one_module_alone(outside: str) -> None:
    assert importers(MODULES, outside) == ONLY_IN[outside]


def test_configuration_and_data_load_without_torch() -> None:
    heavy = tuple(f"coconut_ds.{name}" for name in HEAVY)
    assert set(heavy) <= set(MODULES)
    light = sorted(name for name in MODULES if not any(f"{name}.".startswith(f"{one}.") for one in heavy))
    libraries = ["torch", "transformers", "tokenizers", "deepspeed", "wandb"]
    script = f"import sys, {', '.join(light)}\nprint([name for name in {libraries} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_no_module_hides_one_of_the_standard_library() -> None:
    """``python coconut_ds/train.py`` puts the package's folder on the path."""
    names = {path.stem for path in (ROOT / "coconut_ds").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & sys.stdlib_module_names == set()


def test_no_test_module_imports_another() -> None:
    """What several test modules share is in a module without tests, such as ``making.py``."""
    tests = {path.name: imported(path) for path in (ROOT / "tests").glob("*.py")}
    wrong = {name: [full for full in names if full.startswith("test_")] for name, names in tests.items()}
    assert {name: names for name, names in wrong.items() if names} == {}
