"""The sections of the GPU check run on the CPU with tiny sizes, and say what they need."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from gpu import demo, prosqa
from gpu.report import Report, outcome
from gpu.runner import SECTIONS
from gpu.workload import Options
from imports import ROOT, modules, owner
from launching import environment, run

CHECK = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def sections(tmp_path_factory) -> dict[str, dict]:
    """What the sections without training runs find on the CPU, each in a process of its own."""
    out, found = tmp_path_factory.mktemp("gpu"), {}
    for name in ("environment", "correctness", "mfu", "trace", "generation"):
        command = [CHECK, "--out", out, "--device", "cpu", "--small", "--run-section", name]
        done = run(command, environment(), cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.mark.slow
def test_every_section_runs_on_the_cpu(sections):
    assert {name: outcome(found) for name, found in sections.items()} == dict.fromkeys(sections, "passed")
    assert sections["environment"]["numbers"]["versions"]["torch"] == torch.__version__
    names = {check["name"] for check in sections["correctness"]["checks"]}
    for family in ("gpt2", "llama", "qwen3"):
        for way in ("plain", "checkpointing", "jacobi", "looped", "bf16"):
            assert {f"loss of {family}, {way}", f"gradients of {family}, {way}"} <= names
        assert f"tokens of {family}" in names
    assert {"loss of llama, LoRA", "losses of zero2_qwen3"} <= names
    update = sections["mfu"]["numbers"]["gpt2 fp32"]
    assert 0 < update["mfu_of_products"] < 1
    assert update["tflop"] > 0
    # Two layers, forwards over the prefix; the passes over thoughts use the loop's own products.
    assert sections["trace"]["numbers"]["llama_1b fp32, training"]["attention"] == {"flash on the CPU": 2}
    assert sections["generation"]["numbers"]["4 slots"]["advance_ms"] > 0


@pytest.mark.slow
def test_sections_that_train_run_on_the_cpu(tmp_path, forked_runs, monkeypatch):
    monkeypatch.chdir(ROOT)
    # The sections set it in their process, if it is not set.
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    options = Options(torch.device("cpu"), True, tmp_path)
    for section in (demo, prosqa):
        report = Report(tmp_path / "x.json", "x")
        section.run(report, options)
        report.finish()
        found = json.loads((tmp_path / "x.json").read_text())
        assert outcome(found) == "passed", found
    assert found["numbers"]["epochs_per_minute"] > 0


def test_sections_that_need_missing_packages_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu.report.find_spec", lambda name: None if name in ("hydra", "deepspeed") else object())
    for section in (demo, prosqa):
        report = Report(tmp_path / "x.json", "x")
        section.run(report, Options(torch.device("cpu"), True, tmp_path))
        report.finish()
        found = json.loads((tmp_path / "x.json").read_text())
        assert (outcome(found), [*found["skipped"].values()]) == ("skipped", ["needs deepspeed, hydra"])


def test_sections_load_without_the_packages_for_training():
    """On a machine with torch and transformers alone: no import at the top of a module reaches any other package."""
    known = {**modules("coconut_ds"), **modules("benchmarks"), **modules("tests")}
    known |= {name.removeprefix("benchmarks."): path for name, path in modules("benchmarks").items()}
    known |= {name.removeprefix("tests."): path for name, path in modules("tests").items()}
    waiting, seen, outside = [f"gpu.{section.name}" for section in SECTIONS] + ["gpu_check"], set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        waiting += [parent for parent in parents if parent in known]
        for full in imported_at_the_top(known[name]):
            module = owner(full, known)
            if module is None:
                outside.add(full.split(".")[0])
            else:
                waiting.append(module)
    assert outside - set(sys.stdlib_module_names) == {"torch", "transformers"} | (outside & ALWAYS_THERE)


ALWAYS_THERE = {"huggingface_hub", "jinja2", "numpy", "safetensors", "tokenizers"}
"""Packages that transformers needs itself."""


def imported_at_the_top(path: Path) -> set[str]:
    """What importing a module imports; not what its functions import, nor imports for the type checker."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found
