"""Imports go one way, heavy packages stay in one file each, and configuration and data load without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coconut_ds
from coconut_ds.methods import METHODS

PACKAGE = Path(coconut_ds.__file__).parent

GROUPS = ("run", "data", "model", "training")
# A module may import its own layer and those before it. Names are without "coconut_ds."; "" is the package itself.
PLAIN: list[set[str]] = [
    {"", "arguments", "errors", "files", "launch", "formats"},
    {"scoring"},
    {"methods", "methods.base", *(f"methods.{name}" for name in METHODS)},
    {"schema", "settings", *(f"settings.{name}" for name in ("types", *GROUPS, "config", "evaluation", "probing"))},
    {"layout", "curriculum", "metrics", "position", "progress", "interrupts"},
    {
        "data",
        "data.problem",
        "data.graphs",
        "data.graph_stats",
        "data.graph_answers",
        "data.prosqa",
        "data.layered",
        "data.symbolic",
        "data.arithmetic",
    },
    {"data.downloads", "data.writing"},
    {"data.sources", "data.batches"},
    {"evaluation", "evaluation.statistics"},
    {"evaluation.paired", "evaluation.picture"},
    {"engine_file"},
    {"runs", "runs.code", "runs.folder", "runs.manifest", "runs.identity", "runs.holder", "runs.lock"},
    {"runs.attempts", "runs.catalogue"},
    {"runs.pruning", "runs.selection", "runs.report"},
]
HEAVY: list[set[str]] = [
    {"distributed", "random_states", "zero"},
    {"hub", "tokens"},
    {"token_table"},
    {"data_report", "data_report.statistics"},
    {"data_report.text", "data_report.picture"},
    {
        "model",
        "model.attention",
        "model.collate",
        "model.fused",
        "model.head",
        "model.last_layer",
        "model.checkpointing",
        "model.deferred",
        "model.latent_attention",
        "model.latent_loop",
        "model.loss",
        "model.passes",
        "model.precision",
        "model.backbone",
        "model.support",
        "model.digest",
        "model.live_bytes",
        "model.lora",
        "model.marker_rows",
    },
    {"generation", "generation.requests", "generation.slots", "generation.attention"},
    {"generation.sampling", "generation.rows", "generation.prompter"},
    {"generation.slot_table"},
    {"generation.thinking_engine"},
    {"generation.batch"},
    {"evaluation.prediction", "probing", "probing.labels", "probing.graph_text", "probing.decoding"},
    {"evaluation.evaluator", "evaluation.scores", "evaluation.partial"},
    {"checkpoint", "engine", "wandb_mirror"},
    {"starting"},
    {"reasoner"},
    {"lm_harness"},
    {"probing.cases"},
    {"probing.states", "probing.baselines", "probing.interventions"},
    {"probing.trace", "probing.intervene", "probing.answers", "probing.linear"},
    {"probing.effects", "probing.graph_values", "probing.counterfactuals"},
    {"probing.superposition", "probing.export", "probing.figures"},
    {"probing.graph_figures", "probing.measures"},
    {"probing.reports"},
    {"run_problems"},
    {"experiment"},
    {"memory_plan"},
    {"memory_report"},
    {"run_saver", "identify", "prepared"},
    {"trainer", "assessment"},
    {"training"},
]
# What starts a program: light to import, so that a wrong command line is refused before torch is loaded.
ENTRY: list[set[str]] = [
    {"compose"},
    {"harness"},
    {"runs.cli"},
    {"train", "evaluate", "demo", "compare", "plan", "data.__main__", "runs.__main__"},
    {"probe_study"},
    {"probe"},
]
LAYERS = [*PLAIN, *HEAVY, *ENTRY]

ONLY_IN: dict[str, set[str]] = {
    "deepspeed": {"zero"},
    "peft": {"model.lora"},
    "wandb": {"wandb_mirror"},
    "hydra": {"compose"},
    "omegaconf": {"compose"},
    "lm_eval": {"lm_harness"},
    "gradio": set(),
    "plotly": set(),
    "serve": set(),
    "tests": set(),
}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str, known: dict[str, Path]) -> str | None:
    """The module of the package that an imported full name stands for (``settings.Config`` stands in ``settings``)."""
    first, *parts = name.split(".")
    if first != "coconut_ds":
        return None
    while ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def test_every_module_stands_in_one_layer() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(modules()), "give a new module its place in the table above"


def test_no_module_imports_a_later_layer() -> None:
    known = modules()
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{name} imports {target}"
        for name, path in known.items()
        for target in {own(full, known) for full in imported(path)}
        if target is not None
        and rank.get(target, 0) > rank.get(name, len(LAYERS))
        # What the package itself offers is only loaded when somebody asks for it.
        and (name, target) != ("", "reasoner")
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_heavy_or_outer_package_is_imported_by_its_one_module_alone(package: str) -> None:
    found = {name for name, path in modules().items() if any(full.split(".")[0] == package for full in imported(path))}
    assert found == ONLY_IN[package]


def test_configuration_and_data_load_without_torch() -> None:
    names = sorted(f"coconut_ds.{name}".rstrip(".") for layer in (*PLAIN, *ENTRY) for name in layer)
    heavy = ["torch", "transformers", "tokenizers", "deepspeed", "wandb"]
    script = f"import sys, {', '.join(names)}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_no_module_hides_one_of_the_standard_library() -> None:
    """``python coconut_ds/train.py`` puts the package's folder on the path."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & sys.stdlib_module_names == set()
