"""Results belong to what they were made from: no tool replaces a result of something else in silence."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import contents, make_backbone, make_card
from matplotlib.figure import Figure

from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.reasoner import Reasoner
from coconut_ds.results import (
    FILE,
    Identity,
    ResultFolder,
    free_or_own,
    picture_metadata,
    places_to_read,
    refuse_other_picture,
)

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


def test_long_values_that_differ_only_at_their_ends_are_told_apart(tmp_path):
    long = "/data/" + "x" * 100
    one, other = (
        ResultFolder(tmp_path / "out", Identity({"seed": name}, {"data": f"{long}/{name}.json"}), ("a.txt", "b.txt"))
        for name in ("one", "other")
    )
    write(one, "first")
    with pytest.raises(ConfigError, match=r"data \('/data/xx.*xx/one\.json' there, '/data/xx.*xx/other\.json' now\)"):
        other.refuse_other()


def test_a_result_knows_when_a_file_of_it_has_changed(tmp_path):
    out = tmp_path / "out"
    write(folder_of(out), "first")
    assert folder_of(out).damage() == []
    (out / "a.txt").write_text("firsT")
    (out / "b.txt").unlink()
    assert folder_of(out).damage() == ["a.txt has other content than when it was written", "b.txt is missing"]
    values = json.loads((out / FILE).read_text())
    del values["files"]
    (out / FILE).write_text(json.dumps(values))
    assert folder_of(out).damage() == [], "an earlier version stored no hashes"


def test_folders_that_killed_processes_left_are_removed_and_those_in_use_are_not(tmp_path):
    out = tmp_path / "out"
    with folder_of(out).replacing() as used:
        (out / ".left.part").mkdir()
        (out / ".left.part" / "x").touch()
        for name in ("a.txt", "b.txt"):
            (used / name).touch()
        write(folder_of(out), "other")
        assert sorted(path.name for path in out.glob(".*")) == [used.name]
    assert not list(out.glob(".*"))
