"""Runs from the command line: launchers, the files of a run, and bad input, which leaves nothing behind."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import launching
import pytest
import torch
import yaml
from launching import EVALUATE, TRAIN, VARIABLES, environment, forking
from transformers import AutoModelForCausalLM

from coconut_ds import evaluate
from coconut_ds.distributed.launcher import free_port

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "run=demo",
    "data=modular_sum",
    "num_terms=3",
    "size.train=40",
    "size.valid=10",
    "size.test=12",
    "model=gpt2_scratch_tiny",
    "tokenizer=dataset",
    "model.model_config_overrides.n_embd=16",
    "training=demo",
    "advance=epochs",
    "max_latent_stage=2",
    "epochs_per_stage=1",
    "num_epochs=3",
    "global_batch_size=16",
    "batch_size_training=8",
]
UPDATES = 9
"""Three epochs of 16 + 16 + 8 problems."""


def start(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as a real process in ``folder``, which is empty and outside the checkout."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env=environment(HOME=str(folder)),
    )


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``train(*arguments)`` calls the entry point in this process, in an empty folder, and returns the exit code."""
    from coconut_ds.train import main

    monkeypatch.chdir(tmp_path)
    for key in VARIABLES:
        monkeypatch.delenv(key, raising=False)
    return lambda *arguments: main([str(argument) for argument in arguments])


def only_run(folder: Path) -> Path:
    """The folder of the only attempt in ``folder``."""
    (config,) = folder.glob("outputs/*/*/*/config.yaml")
    return config.parent


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


DEEPSPEED = Path(sys.executable).with_name("deepspeed")
LAUNCHERS: dict[str, list[object]] = {
    "python": [TRAIN],
    "deepspeed": [DEEPSPEED, "--master_port", free_port(), TRAIN],
    "deepspeed, two ranks": [DEEPSPEED, "--master_port", free_port(), "--num_accelerators", "2", TRAIN],
    "torchrun": [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2", TRAIN],
    "installed": [Path(sys.executable).with_name("coconut-train")],
}
FORKED = ("python", "deepspeed", "deepspeed, two ranks", "installed")
"""These are forked, with the processes they start. Tests of signals start plain Python and ``deepspeed`` really."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> dict[str, Path]:
    """The run that each launcher made, in a folder outside the checkout with an empty home."""
    runs = {}
    for name, command in LAUNCHERS.items():
        folder = tmp_path_factory.mktemp("launch")
        words, variables = [str(word) for word in (*command, *TINY)], environment(HOME=str(folder))
        forked = words if name == "python" else forking(words)
        done = launching.run(forked, variables, cwd=folder) if name in FORKED else start(words, folder)
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        runs[name] = only_run(folder)
    return runs


@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(launched):
    expected = losses(launched["python"])
    assert len(expected) == UPDATES
    for name, run in launched.items():
        assert losses(run) == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
def test_what_a_run_leaves_behind(launched):
    run = launched["python"]
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint_2",
        "checkpoint_3",
        "config.yaml",
        "metrics.jsonl",
        "problems",
        "run_manifest.yaml",
        "samples",
        "summary.json",
    ]
    assert sorted(path.name for path in run.parent.iterdir()) == [".launch.1", run.name, "signature.json"]
    card = json.loads((run / "checkpoint_3" / "coconut.json").read_text())
    assert (card["method"], card["stage"], card["num_thoughts"]) == ("coconut", 2, 4)
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["global_batch_size"] == 16
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["updates"], summary["epochs"], summary["best_stage"]) == (UPDATES, 3, 2)
    assert Path(summary["last_checkpoint"]).name == "checkpoint_3"
    samples = json.loads((run / "samples" / "epoch_3.json").read_text())
    assert {"question", "text", "answer", "correct"} <= samples[0].keys()
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoint_3")
    assert model.config.n_embd == 16


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_with_nothing_else_given(launched, tmp_path, monkeypatch):
    checkpoint = launched["python"] / "checkpoint_3"
    sizes = ["num_terms=3", "size.test=12", "size.valid=10"]
    done = start([sys.executable, EVALUATE, f"checkpoint={checkpoint}", "data=modular_sum", *sizes], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "method coconut, test problems" in done.stdout
    (scores,) = tmp_path.glob("outputs/eval/*/modular_sum-*/scores.json")
    values = json.loads(scores.read_text())
    lines = [json.loads(line) for line in (scores.parent / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == values["problems"] == 12
    assert values["accuracy"] == sum(line["correct"] for line in lines) / 12

    again = tmp_path / "problems.json"
    again.write_text(
        json.dumps([{"question": line["question"], "steps": [], "answer": line["answer"]} for line in lines])
    )
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([f"checkpoint={checkpoint}", f"data={again}", "batch_size=5"]) == 0
    (scores,) = tmp_path.glob("outputs/eval/*/problems-*/scores.json")
    assert json.loads(scores.read_text())["accuracy"] == values["accuracy"]


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint_and_skips_the_epochs_it_stands_for(launched, tmp_path, train):
    """The first validation loss after loading is that of the loaded model, far below the loss of a new one."""
    path = launched["python"] / "checkpoint_3"
    extra = [f"load_model_path={path}", "resume=2", "lr=1e-9", "save_only_improve=true", "reset_optimizer=epoch"]
    assert train(*TINY, *extra) == 0
    run = only_run(tmp_path)
    old, new = (json.loads((r / "metrics.jsonl").read_text().splitlines()[-1]) for r in (launched["python"], run))
    assert new["epoch"] == 3
    assert new["eval/loss"] == pytest.approx(old["eval/loss"], rel=1e-3)
    loaded, saved = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (path, run / "checkpoint_3"))
    assert all(torch.allclose(loaded[name], saved[name], atol=1e-6) for name in loaded)


@pytest.mark.slow
def test_only_eval_writes_scores_and_no_attempt(launched, tmp_path, train):
    path = launched["python"] / "checkpoint_3"
    assert train(*TINY, f"load_model_path={path}", "only_eval=true") == 0
    (scores,) = tmp_path.glob("outputs/demo/eval/*-checkpoint_3/modular_sum-*/scores.json")
    assert json.loads(scores.read_text())["problems"] == 12
    assert not list(tmp_path.glob("outputs/*/*/*/config.yaml"))


@pytest.mark.slow
def test_accuracy_moves_the_curriculum_and_its_switches_can_be_repeated(tmp_path, train):
    """With advance_at=0 each epoch ends its stage. Repeating the recorded switches gives the same losses. Both runs are
    in one process, so an engine must leave nothing behind for the next one."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(*TINY, "advance=accuracy", "advance_at=0", "stop_at=0", f"save_path={first / 'outputs'}") == 0
    summary = json.loads((only_run(first) / "summary.json").read_text())
    assert summary["stage_switches"] == [1, 2]
    assert train(*TINY, "stage_switches=[1,2]", f"save_path={second / 'outputs'}") == 0
    assert losses(only_run(second)) == losses(only_run(first))


@pytest.mark.slow
def test_debug_is_small_and_improvements_alone_are_kept_where_asked(tmp_path, train, capsys):
    """A learning rate of almost 0 improves nothing, so a stage's first checkpoint is its best; the last one is kept to
    resume from."""
    more = [
        "debug=true",
        "size.valid=40",
        "save_only_improve=true",
        "lr=1e-9",
        "epochs_per_stage=2",
        "max_latent_stage=1",
        "num_epochs=4",
    ]
    assert train(*TINY, *more, "num_terms=4", "run.wandb=online") == 0
    assert "32 validation problems" in capsys.readouterr().out
    kept = sorted(path.name for path in only_run(tmp_path).glob("checkpoint_*"))
    assert kept == ["checkpoint_3", "checkpoint_4"]


@pytest.mark.slow
def test_wandb_that_cannot_start_is_an_error_and_leaves_nothing(tmp_path):
    variables = environment(HOME=str(tmp_path), WANDB_MODE="online", WANDB_API_KEY="no")
    done = launching.run([TRAIN, *TINY, "run.wandb=online"], variables, cwd=tmp_path)
    assert done.returncode == 2
    assert "run.wandb=online: wandb did not start" in done.stderr
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_wandb_offline_mirrors_the_record(tmp_path):
    variables = environment(HOME=str(tmp_path), WANDB_SILENT="true")
    done = launching.run([TRAIN, *TINY, "num_epochs=1", "run.wandb=offline"], variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))


def problems(**changes: object) -> list[dict[str, object]]:
    return [{"question": "a b ?", "steps": ["c", "d"], "answer": "e", **changes}]


FILES = {
    "missing": (None, r"data.train_path=.*train.json: no such file"),
    "broken": ('[{"question": "a"', r"train.json: broken JSON at line 1"),
    "no answer": (json.dumps([{"question": "a", "steps": []}]), r"train.json: item 0, key 'answer': missing"),
    "empty": ("[]", r"train.json: holds no problems"),
    "step": (json.dumps(problems(steps=["c", 5])), r"train.json: item 0, key 'steps', step 1: found int 5"),
}
BAD = {
    "unknown method": (["method.kind=telepathy"], "method.kind: found 'telepathy'"),
    "unknown data source": (["data.kind=web"], "data.kind: found 'web', unknown data source; expected one of file"),
    "batch": (["batch_size_training=5"], "batch_size_training=5 does not divide.*one of 1, 2, 4, 8, 16"),
    "tokenizer": (["tokenizer=/nowhere/tokenizer"], "model.tokenizer=/nowhere/tokenizer: no such folder"),
    "hub tokenizer": (["tokenizer=openai-community/gpt2"], "hub cannot be reached; set model.tokenizer"),
    "context": (["model.model_config_overrides.n_positions=8"], "problem 0 has .* tokens.*context is 8"),
    "save path": (["save_path=/dev/null/x"], "save_path=/dev/null/x: cannot be written to"),
    "width": (["model.model_config_overrides.n_embd=30"], "n_embd.*no model can be built from this GPT2Config"),
    "resume": (["resume=1"], "resume=1 skips epochs.*load_model_path"),
    "checkpoint": (["load_model_path=/nowhere"], "load_model_path=/nowhere: no such file or folder"),
    "kernel": (["attn_implementation=flash_attention_2", "bf16=true"], "flash_attn.*is missing"),
    "engine": (["deepspeed=zero0", "bf16=true"], "bf16=true with ZeRO stage 0"),
    "half": (["attn_implementation=flash_attention_2"], "needs|half precision"),
    "overlap": (["num_terms=1"], "data.num_terms: found 1"),
    "multirun": (["--multirun"], "--multirun"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FILES, *BAD])
def test_bad_input_is_one_clear_error_and_nothing_is_left_behind(case, tmp_path, capsys, train):
    """Exit code 2, one error and no output folder."""
    arguments = list(TINY)
    if case in FILES:
        content, words = FILES[case]
        for name in ("train", "valid"):
            text = json.dumps(problems()) if name == "valid" else content
            if text is not None:
                (tmp_path / f"{name}.json").write_text(text)
        arguments[1:6] = ["data=prosqa_file", "train_path=train.json", "val_path=valid.json"]
    else:
        extra, words = BAD[case]
        arguments += extra
    before = sorted(path.name for path in tmp_path.iterdir())
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert re.search(words, error, flags=re.DOTALL), error
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    # Otherwise processes that this one starts next would take themselves for ranks.
    assert not {"RANK", "MASTER_PORT"} & os.environ.keys()


def test_default_data_that_is_not_there_names_the_command_that_makes_it(tmp_path, monkeypatch):
    from coconut_ds.data.sources import open_source
    from coconut_ds.errors import DataError
    from coconut_ds.settings.compose import compose_config

    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"prosqa_train\.json: no such file; make it with: python preprocessing/prosqa\.py"
    ):
        open_source(compose_config([]).data, 0).train(0)
    assert (ROOT / "preprocessing" / "prosqa.py").is_file()
