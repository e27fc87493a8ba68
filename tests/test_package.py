"""The wheel works, and so does a small demo from end to end."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import launching
import pytest
from launching import Process, forking

from coconut_ds.distributed.launcher import launcher
from coconut_ds.studies import harness
from coconut_ds.studies.demo import conclusion

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_works_from_any_directory_with_its_configuration(tmp_path):
    """Installed without the checkout, it composes the defaults and finds its engine files and its launch script."""
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, cwd=tmp_path)
    (built,) = tmp_path.glob("coconut_ds-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(built)], check=True)
    code = (
        "from coconut_ds import files\n"
        "from coconut_ds.settings import compose\n"
        "from coconut_ds.training import engine_file\n"
        f"assert files.__file__.startswith({str(site)!r}), files.__file__\n"
        "config = compose.compose_config(['deepspeed=zero3'])\n"
        "print(config.training.max_latent_stage, engine_file.read_engine_file(config)['zero_optimization']['stage'])\n"
        "assert files.train_script().is_file()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6", "3"]


@pytest.fixture
def one_launched_run(monkeypatch: pytest.MonkeyPatch, forked_runs: None) -> None:
    """The run of coconut is started by the launcher, as its command says; those of other methods without it."""
    fork = harness.subprocess.Popen

    def popen(command: list[str], *, text: bool, **options: Any) -> Process:
        assert command[0] == launcher(1)[0]
        if "method=coconut" in command:
            return launching.start(forking(command), **options)
        return fork(command, text=text, **options)

    monkeypatch.setattr(harness.subprocess, "Popen", popen)


@pytest.mark.slow
@pytest.mark.usefixtures("one_launched_run")
def test_the_demo_trains_three_methods_and_reports_what_it_measured(tmp_path, monkeypatch, capsys):
    """In two short epochs nothing is learned, and the demo says so."""
    out = tmp_path / "a demo's folder"
    small = ["num_epochs=2", "size.train=256", "size.valid=40", "size.test=60"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out), *small])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("coconut_ds.demo", run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 0, said.out + said.err
    summary = json.loads((out / "summary.json").read_text())
    for method in ("coconut", "no_thoughts", "no_cot"):
        lines = (out / "evaluation" / method / "predictions.jsonl").read_text().splitlines()
        right = sum(json.loads(line)["correct"] for line in lines)
        assert summary[method] == pytest.approx(right / 60, abs=1e-4)
        assert summary["updates"][method] == 4
    assert (out / "accuracy.png").stat().st_size > 10_000
    assert summary["sentence"].startswith("coconut did not solve the task in the given number of epochs")
    assert summary["sentence"] in said.out
    assert said.out.startswith("Trains three small models on this computer: about four minutes")
    assert said.out.endswith("README.md continues with real text (run=quick)\n")
    assert "WARNING" not in said.out + said.err
    assert said.out.count("answer: ") == 5


@pytest.mark.parametrize(
    ("coconut", "no_thoughts", "begins"),
    [
        (0.9, 0.1, "coconut did not solve the task"),
        (0.98, 0.2, "Here the thoughts themselves matter: coconut 98.0%"),
        (0.98, 0.97, "Here the curriculum makes the difference"),
        (0.98, 0.8, "Thoughts help, but part of the gain comes from the curriculum"),
    ],
)
def test_the_demos_sentence_follows_the_numbers(coconut, no_thoughts, begins):
    assert conclusion({"coconut": coconut, "no_thoughts": no_thoughts, "no_cot": 0.17}).startswith(begins)
