"""Results belong to what they were made from: no tool replaces a result of something else in silence."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_backbone, make_card
from matplotlib.figure import Figure

from coconut_ds import evaluate as evaluate_script
from coconut_ds.distributed.ranks import ALONE
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.evaluation.session import evaluation_job
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import Reasoner, load_reasoner
from coconut_ds.results import (
    FILE,
    Identity,
    ResultFolder,
    free_or_own,
    picture_metadata,
    places_to_read,
    refuse_other_picture,
)
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.schema import leaf_keys
from coconut_ds.studies import demo, methods
from coconut_ds.studies.harness import TrainedRun

PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3)
TABLES = st.dictionaries(st.text(max_size=10), PLAIN, max_size=4)


def folder_of(path: Path, seed: int = 0, overwrite: bool = False) -> ResultFolder:
    return ResultFolder(
        path, Identity({"seed": seed}, {"data": f"{seed}.json"}), ("*_part", "a.txt", "b.txt"), overwrite
    )


def write(folder: ResultFolder, text: str) -> None:
    with folder.replacing() as made:
        for name in ("b.txt", "a.txt"):
            (made / name).write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_free_own_or_anothers(tmp_path):
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    (out / "notes.txt").write_text("not a result")
    write(folder_of(out), "first")
    write(folder_of(out), "again")
    before = contents(out)
    assert before.keys() == {FILE, "a.txt", "b.txt", "notes.txt"}
    assert before["a.txt"] == b"again"
    other = folder_of(out, seed=1)
    for refused in (other.refuse_other, other.take, lambda: write(other, "other")):
        with pytest.raises(ConfigError, match=r"data \('0\.json' there, '1\.json' now\), seed \(0 there, 1 now\)"):
            refused()
    with pytest.raises(ConfigError, match=r"out=.*set out= to another folder, or add overwrite=true to replace them"):
        other.refuse_other()
    other.claim()
    assert contents(out) == before
    assert free_or_own(folder_of(out)).path == out
    assert free_or_own(other).path == tmp_path / f"out-{other.identity.signature}"
    assert free_or_own(other, out / "table").path == out / f"table-{other.identity.signature}"
    write(folder_of(out, seed=1, overwrite=True), "other")
    assert contents(out).keys() == before.keys()
    assert other.is_finished
    assert not folder_of(out).is_own


def test_results_without_an_identity_are_read_and_never_replaced(tmp_path):
    """As an earlier version left them."""
    for name in ("a.txt", "7_part"):
        out = tmp_path / name.replace(".", "")
        out.mkdir()
        (out / name).write_text("kept")
        folder = folder_of(out)
        with pytest.raises(ConfigError, match=rf"holds results \({name}\).*earlier version"):
            folder.refuse_other()
        assert not folder.is_finished
        beside = free_or_own(folder)
        assert places_to_read(beside, out) == [beside.path, out]
        folder.claim()
        assert contents(out) == {name: b"kept"}
        (out / FILE).write_text("{")
        assert folder.stored() is None
        assert not folder.is_own


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    write(folder_of(tmp_path), "first")
    before = contents(tmp_path)
    for folder in (folder_of(tmp_path), folder_of(tmp_path, seed=1, overwrite=True)):
        with pytest.raises(UnicodeEncodeError):
            write(folder, "a lone surrogate, \ud800, cannot be written")
        assert contents(tmp_path) == before


def test_a_result_counts_as_finished_when_its_last_file_is_there(tmp_path):
    folder = folder_of(tmp_path)
    folder.claim()
    (tmp_path / "a.txt").write_text("half")
    assert (folder.is_own, folder.is_finished) == (True, False)
    write(folder, "all")
    assert folder.is_finished
    assert not folder_of(tmp_path, overwrite=True).is_finished


@settings(max_examples=30)
@given(TABLES, TABLES, TABLES)
def test_an_identity_comes_back_from_json_and_from_a_picture(values, other, asked):
    identity = Identity(values, asked)
    assert identity.is_of(Identity.from_dict(json.loads(json.dumps(identity.as_dict()))))
    assert identity.is_of(Identity.from_dict(json.loads(picture_metadata(identity)["coconut-ds"])))
    assert picture_metadata(identity)["coconut-ds"].isascii()
    assert identity.is_of(Identity(other)) == (json.dumps(values, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_a_picture_of_something_else_is_refused(tmp_path):
    path, own = tmp_path / "a.png", Identity({"seed": 0}, {"file": "é ☃"})
    refuse_other_picture(path, own, "--png")
    Figure().savefig(path, metadata=picture_metadata(own))
    refuse_other_picture(path, own, "--png")
    with pytest.raises(ConfigError, match=r"--png .*a\.png: exists.*seed \(0 there, 1 now\).*add --overwrite"):
        refuse_other_picture(path, Identity({"seed": 1}), "--png")
    for unknown in (lambda: Figure().savefig(path), lambda: path.write_text("no picture")):
        unknown()
        with pytest.raises(ConfigError, match="exists, and what it was made from is not stored"):
            refuse_other_picture(path, own, "--png")


# Evaluations


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
    monkeypatch.setattr("coconut_ds.evaluation.session.load_reasoner", functools.cache(load_reasoner))


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
FREE |= {"data.test_path", "data.val_path", "data.train_path", "data.kind", "data.format", "data.online"}
"""Keys that change no number, or whose content counts instead of the value."""
OTHER = {
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
    "data.max_new_tokens": "2",
}


def test_every_key_of_an_evaluation_changes_the_signature_or_is_known_not_to(place, fast):
    checkpoint, data = place / "one/a/model", place / "svamp/test.json"

    def signature_of(*more: str, checkpoint: Path = checkpoint, data: Path | str = data) -> str:
        config = compose_eval_config([f"checkpoint={checkpoint}", f"data={data}", "temperature=0.1", *more])
        return evaluation_job(config, ALONE).results().identity.signature

    own = signature_of()
    generated = {key for key in leaf_keys(EvalConfig) if key.startswith(("data.size", "data.num_", "data.mod"))}
    generated |= {"data.wording", "data.split_by"}
    architecture = {key for key in leaf_keys(EvalConfig) if key.startswith("model.")}
    assert set(leaf_keys(EvalConfig)) == FREE | OTHER.keys() | generated | architecture
    changed = [signature_of(f"{key}={value}") for key, value in OTHER.items()]
    changed += [signature_of(checkpoint=place / "other/a/model"), signature_of(data=place / "multiarith/test.json")]
    sums = [(9,), (8,), (9, "num_terms=5"), (9, "seed=1")]
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


def test_a_model_is_not_saved_over_a_folder_of_something_else(tmp_path):
    backbone = make_backbone()
    reasoner = Reasoner(backbone, make_card(backbone))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/scores.json").write_text("{}")
    (tmp_path / "new").mkdir()
    for name in ("new", "new"):
        reasoner.save(tmp_path / name)
    for name in ("results", "results/scores.json"):
        with pytest.raises(CheckpointError, match="exists and is not a model folder; save to another folder"):
            reasoner.save(tmp_path / name)
    assert contents(tmp_path / "results") == {"scores.json": b"{}"}


# Studies


@pytest.fixture
def trainings(monkeypatch, tmp_path) -> list[list[str]]:
    """The overrides of each training that a study starts; nothing is trained."""
    started: list[list[str]] = []
    summary = {"updates": 1, "stage_switches": [], "last_checkpoint": "x"}

    def launch_run(label, overrides, show, with_deepspeed=True, program=()):
        started.append(list(overrides))
        (tmp_path / "metrics.jsonl").write_text(
            json.dumps(
                {"eval/accuracy": 0.5, "eval/stage": 1, "eval/num_thoughts": 2, "eval/num_pauses": 0, "global_step": 1}
            )
        )
        return TrainedRun(label, tmp_path, summary, 1.0)

    for study in (methods, demo):
        monkeypatch.setattr(study, "launch_run", launch_run)
        monkeypatch.setattr(study, "score_on_test", lambda run, data, out: len(started) / 100)
    for name in ("show_thoughts", "draw_curves"):
        monkeypatch.setattr(demo, name, lambda *given: None)
    return started


def test_a_comparison_keeps_runs_and_tables_of_other_selections(trainings, tmp_path, capsys):
    line = ["--out", str(tmp_path / "out"), "--tasks", "modular_sum", "--methods", "cot", "--lanes", "1"]
    assert methods.main([*line, "--seeds", "0"]) == 0
    first = contents(tmp_path / "out")
    assert {"table.md", "accuracy.png", FILE, "modular_sum/cot/seed_0/result.json"} <= first.keys()
    assert methods.main([*line, "--seeds", "0", "1"]) == 0
    assert methods.main([*line, "--seeds", "0", "--set", "lr=1"]) == 0
    assert [one for one in trainings if "lr=1" in one]
    assert len(trainings) == 3, "seed 0 was there"
    assert first.items() <= contents(tmp_path / "out").items()
    everything = contents(tmp_path / "out")
    tables = [name for name in everything if name.endswith("table.md")]
    assert len(tables) == 3
    results = [name for name in everything if name.endswith("result.json")]
    assert len(results) == 3
    capsys.readouterr()
    assert methods.main([*line, "--seeds", "0", "--set", "lr=1"]) == 0
    assert capsys.readouterr().out.startswith("1 of 1 runs are already finished\n")
    assert contents(tmp_path / "out").keys() == everything.keys()


def test_a_run_of_an_earlier_version_is_kept_and_used(trainings, tmp_path, capsys):
    cell = methods.TableCell("modular_sum", "cot", 0)
    old = cell.folder(tmp_path / "out")
    old.mkdir(parents=True)
    result = {"accuracy": 0.25, "stage": 0, "num_thoughts": 0, "num_pauses": 0, "duration_s": 1.0}
    (old / "result.json").write_text(json.dumps({"overrides": cell.overrides(()), **result}))
    kept = contents(old)
    line = ["--out", str(tmp_path / "out"), "--tasks", "modular_sum", "--methods", "cot", "--seeds", "0"]
    assert methods.main(line) == 0
    assert "1 of them are of an earlier version" in capsys.readouterr().out
    assert trainings == []
    assert methods.main([*line, "--set", "lr=1"]) == 0
    assert len(trainings) == 1
    assert contents(old) == kept


def test_the_demo_keeps_results_of_another_seed_and_finds_its_own(trainings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0
    kept = contents(tmp_path / "outputs")
    assert demo.main(["--seed", "1"]) == 0
    assert kept.items() <= contents(tmp_path / "outputs").items()
    assert len(list(tmp_path.glob("outputs/demo/seed_1-*/summary.json"))) == 1
    count = len(trainings)
    capsys.readouterr()
    assert demo.main([]) == 0
    assert capsys.readouterr().out.startswith("finished before; these are the stored results")
    assert len(trainings) == count
    assert demo.main(["--out", "here"]) == 0
    here = contents(tmp_path / "here")
    assert demo.main(["--out", "here", "--seed", "1"]) == 2
    assert "seed (0 there, 1 now)" in capsys.readouterr().err
    assert contents(tmp_path / "here") == here
    assert demo.main(["--out", "here", "--seed", "1", "--overwrite"]) == 0
    assert json.loads((tmp_path / "here/summary.json").read_text())["seed"] == 1
