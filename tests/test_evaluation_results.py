"""Evaluations keep their results: another identity gets another folder, the same one finds what it has made."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from making import contents, make_backbone, make_card

from coconut_ds import evaluate as evaluate_script
from coconut_ds.distributed.ranks import ALONE
from coconut_ds.evaluation.report import PNG_END
from coconut_ds.evaluation.session import evaluation_job
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import load_reasoner
from coconut_ds.results import (
    FILE,
)
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.schema import leaf_keys


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two checkpoints of the same name, and files of problems of the same name."""
    folder = tmp_path_factory.mktemp("place")
    for run, seed in (("one", 5), ("other", 6)):
        backbone = make_backbone(seed=seed)
        state = backbone.model.state_dict()
        save_model(folder / run / "a" / "model", backbone.model, state, backbone.tokenizer, make_card(backbone))
    for name, question in (("svamp", "1 + 2"), ("multiarith", "2 + 2 ="), ("graphs", "3")):
        (folder / name).mkdir()
        items = [{"question": question, "steps": ["1"], "answer": "3"}, {"question": "2 1", "answer": "2"}]
        (folder / name / "test.json").write_text(json.dumps(items))
    return folder


@pytest.fixture
def fast(monkeypatch) -> None:
    """Leaves out what takes longer than an evaluation of two problems: git, drawing, and loading a checkpoint again."""
    monkeypatch.setattr("coconut_ds.evaluation.identity.code_identity", lambda: {"version": "1"})
    monkeypatch.setattr(
        "coconut_ds.evaluation.report.draw_sweep", lambda points, path, *more: path.write_text(str(points))
    )
    monkeypatch.setattr("coconut_ds.evaluation.loading.load_reasoner", functools.cache(load_reasoner))


@pytest.fixture
def run(place, tmp_path, fast, monkeypatch, capsys) -> Callable[..., str]:
    """Evaluates in an empty working folder; returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*more: str, data: str = "svamp", expected: int = 0) -> str:
        line = [f"checkpoint={place / 'one/a/model'}", f"data={place / data / 'test.json'}", "max_new_tokens=3", *more]
        assert evaluate_script.main(line) == expected
        written = capsys.readouterr()
        return written.err if expected else written.out

    return run


def test_evaluations_that_differ_in_anything_keep_their_own_folders(run, tmp_path):
    run()
    kept = contents(tmp_path)
    run(data="multiarith")
    for more in ("seed=1", "temperature=0.5", "n_thoughts=2", "n_thoughts=0,2", "max_new_tokens=2"):
        run(*(["temperature=0.5", "seed=1"] if more == "seed=1" else []), more)
    assert kept.items() <= contents(tmp_path).items()
    folders = sorted(path.parent.name.rpartition("-")[0] for path in tmp_path.rglob(FILE))
    names = ["test"] * 3 + ["test-2_thoughts", "test-temperature_0.5", "test-temperature_0.5-seed_1", "test"]
    assert folders == sorted(names)
    assert {path.parent.parent.name for path in tmp_path.rglob(FILE)} == {"a-model"}


def test_the_same_line_finds_its_finished_result(run, tmp_path):
    for line in ([], ["n_thoughts=0,2"]):
        first = run(*line)
        kept = contents(tmp_path)
        again = run(*line, "batch_size=1")
        assert again == f"evaluated before; these are the stored results (overwrite=true evaluates again)\n{first}"
        assert contents(tmp_path) == kept
    run("overwrite=true")
    assert contents(tmp_path).keys() == kept.keys()
    assert contents(tmp_path) != kept, "the times are new"


def test_scores_name_everything_that_was_asked_for(run, tmp_path, place):
    run("seed=3", "temperature=0.7", "top_k=5", "bf16=true", "n_thoughts=1,2", "out=here")
    for path in ("0", "1"):
        scores = json.loads((tmp_path / "here/sweep.json").read_text())[int(path)]
        asked = scores["settings"]
        assert asked["checkpoint"] == str(place / "one/a/model")
        assert asked["data"]["test_path"] == str(place / "svamp/test.json")
        assert (asked["seed"], asked["temperature"], asked["top_k"], asked["bf16"]) == (3, 0.7, 5, True)
        assert asked["n_thoughts"] == [1, 2]
        stored = json.loads((tmp_path / "here" / FILE).read_text())
        assert (scores["signature"], scores["identity"]) == (stored["signature"], stored["identity"])
        assert scores["identity"]["temperature"] == 0.7


def test_an_explicit_folder_with_another_evaluation_is_refused(run, tmp_path):
    run("out=here")
    kept = contents(tmp_path)
    said = run("out=here", "seed=1", data="multiarith", expected=2)
    assert said.startswith("error: out=here: holds results (accuracy.png, identity.json, predictions.jsonl) made from ")
    for words in ("svamp/test.json", "multiarith/test.json", "seed (0 there, 1 now)", "overwrite=true", "set out="):
        assert words in said
    assert contents(tmp_path) == kept
    run("out=here", "n_thoughts=0,2", "overwrite=true")
    assert not (tmp_path / "here/scores.json").exists()
    run("out=here", "overwrite=true")
    assert not list((tmp_path / "here").glob("*_thoughts"))


def test_results_of_an_earlier_version_are_compared_and_not_replaced(run, tmp_path):
    run("out=new")
    run("out=old", "n_thoughts=0")
    (tmp_path / "old" / FILE).unlink()
    kept = contents(tmp_path)
    assert "an earlier version" in run("out=old", expected=2)
    assert "an earlier version" in run("out=old", "n_thoughts=0", expected=2)
    assert contents(tmp_path) == kept
    assert evaluate_script.main(["--compare", "old", "new"]) == 0


def test_two_evaluations_are_compared_without_typing_their_signatures(run, tmp_path, capsys):
    run()
    run("n_thoughts=0")
    assert evaluate_script.main(["--compare", "outputs/eval/a-model/test", "outputs/eval/a-model/test-0_thoughts"]) == 0
    assert "2 problems" in capsys.readouterr().out
    run(data="multiarith")
    assert evaluate_script.main(["--compare", "outputs/eval/a-model/test", "outputs/eval/a-model/test-0_thoughts"]) == 2
    assert capsys.readouterr().err.startswith("error: outputs/eval/a-model/test: found 2 evaluations, expected one of ")


FREE = {"checkpoint", "out", "overwrite", "batch_size", "data_name", "method", "data.made_by", "data.cache_path"}
FREE |= {"data.test_path", "data.val_path", "data.train_path", "data.kind", "data.format", "data.online", "tf32"}
FREE |= {"data.chat_template"}  # the checkpoint's card decides
"""Keys that change no number, or whose content counts instead of the value."""
OTHER = {
    "data.answers": "numbers",
    "data.scoring": "number",
    "n_thoughts": "1",
    "force_text_after": "1",
    "min_thoughts": "1",
    "max_thoughts": "3",
    "temperature": "0.5",
    "top_k": "3",
    "top_p": "0.5",
    "bf16": "true",
    "attn_implementation": "eager",
    "seed": "1",
    "samples": "3",
    "data.max_new_tokens": "2",
}


def test_every_key_of_an_evaluation_changes_the_signature_or_is_known_not_to(place, fast):
    checkpoint, data = place / "one/a/model", place / "svamp/test.json"

    def signature_of(*more: str, checkpoint: Path = checkpoint, data: Path | str = data) -> str:
        config = compose_eval_config([f"checkpoint={checkpoint}", f"data={data}", "temperature=0.1", *more])
        return evaluation_job(config, ALONE).results().identity.signature

    own = signature_of()
    generated = {key for key in leaf_keys(EvalConfig) if key.startswith(("data.size", "data.num_", "data.mod"))}
    generated |= {"data.wording", "data.split_by", "data.schedule", "data.balanced"}
    architecture = {key for key in leaf_keys(EvalConfig) if key.startswith("model.")}
    noise = {"thought_noise", "thought_sigma", "thought_dropout"}
    assert set(leaf_keys(EvalConfig)) == FREE | OTHER.keys() | generated | architecture | noise
    changed = [signature_of(f"{key}={value}") for key, value in OTHER.items()]
    changed += [signature_of(checkpoint=place / "other/a/model"), signature_of(data=place / "multiarith/test.json")]
    sums = [(9,), (8,), (9, "num_terms=5"), (9, "seed=1")]
    noises = [("gaussian", "thought_sigma=1"), ("gaussian", "thought_sigma=2")]
    noises += [("dropout", "thought_dropout=0.1"), ("dropout", "thought_dropout=0.2")]
    changed += [signature_of(f"thought_noise={kind}", size) for kind, size in noises]
    changed += [signature_of("size.valid=20", f"size.test={count}", *more, data="modular_sum") for count, *more in sums]
    assert len({own, *changed}) == 1 + len(changed)
    (place / "copy.json").write_text(json.dumps(json.loads(data.read_text()), indent=3))
    for same in (signature_of("batch_size=1", "out=x", "overwrite=true"), signature_of(data=place / "copy.json")):
        assert same == own


def test_scores_are_stored_although_the_picture_fails(run, tmp_path, monkeypatch):
    def fail(*given):
        raise ZeroDivisionError

    monkeypatch.setattr("coconut_ds.evaluation.report.draw_sweep", fail)
    with pytest.raises(ZeroDivisionError):
        run("out=here")
    assert {"scores.json", "predictions.jsonl", FILE} <= contents(tmp_path / "here").keys()
    assert "evaluated before" in run("out=here")
    # The next launch draws what is missing or was not written to its end.
    monkeypatch.setattr(
        "coconut_ds.evaluation.report.draw_sweep", lambda points, path, *more: path.write_bytes(PNG_END)
    )
    picture = tmp_path / "here" / "accuracy.png"
    for before in (None, b"\x89PNG"):
        if before is not None:
            picture.write_bytes(before)
        assert "evaluated before" in run("out=here")
        assert picture.read_bytes() == PNG_END
