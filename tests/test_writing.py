"""The files of a data set are written all or none, with a manifest, and not over files of other content."""

import json
from pathlib import Path

import pytest
from making_preprocessing import FIXTURES, files_of, gsm, prontoqa, script, sha

from coconut_ds.data.problem import Problem
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError


def test_the_manifest_lists_the_files_of_the_folder(tmp_path: Path) -> None:
    """Entries of files that a later run does not touch stay; those of deleted files are removed."""
    good = (FIXTURES / "gsm_valid.txt").read_bytes()
    for name, times in {"train.txt": 1, "valid.txt": 2}.items():
        (tmp_path / name).write_bytes(good * times)
        assert gsm.main([str(tmp_path / name), "--out", str(tmp_path)]) == 0
    lines = good.count(b"\n")
    found = files_of(tmp_path)
    entries = json.loads(found["gsm_manifest.json"])["outputs"]
    assert list(entries) == ["gsm_train.json", "gsm_valid.json"]
    for times, split in enumerate(("train", "valid"), start=1):
        content = found[f"gsm_{split}.json"]
        read = {"name": f"{split}.txt", "bytes": len(good) * times, "sha256": sha(good * times)}
        assert entries[f"gsm_{split}.json"] == {
            **{"problems": lines * times, "bytes": len(content), "sha256": sha(content)},
            **{"options": {}, "inputs": [read]},
        }
    (tmp_path / "gsm_train.json").unlink()
    assert gsm.main([str(tmp_path / "valid.txt"), "--out", str(tmp_path)]) == 0
    assert list(json.loads(files_of(tmp_path)["gsm_manifest.json"])["outputs"]) == ["gsm_valid.json"]


def test_files_with_other_content_are_replaced_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prosqa = script("prosqa")
    (tmp_path / "train.txt").write_bytes((FIXTURES / "gsm_valid.txt").read_bytes())
    for convert, first, other, differs in (
        (prontoqa, [str(FIXTURES / "prontoqa.json")], ["--seed", "1"], "seed: 0 → 1"),
        (prosqa, ["--sizes", "2", "1", "1"], ["--sizes", "2", "1", "2"], "sizes.test: 1 → 2"),
        (gsm, [str(tmp_path / "train.txt")], [], ""),
    ):
        line = [*first, "--out", str(tmp_path / "out")]
        assert convert.main(line) == 0
        kept = files_of(tmp_path / "out")
        assert convert.main(line) == 0
        assert files_of(tmp_path / "out") == kept
        if convert is gsm:
            with (tmp_path / "train.txt").open("a") as file:
                file.write("q||1 #### 1\n")
        capsys.readouterr()
        assert convert.main([*line, *other]) == 2
        error = capsys.readouterr().err
        assert "found other content than the new" in error
        assert "set --out to another folder, or add --overwrite" in error
        assert differs in error
        assert files_of(tmp_path / "out") == kept
        assert convert.main([*line, *other, "--overwrite"]) == 0
        assert files_of(tmp_path / "out").keys() == kept.keys()
        assert files_of(tmp_path / "out") != kept


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    """The same for an interrupt; a manifest that is not ours is not overwritten."""

    def interrupted() -> None:
        with Outputs(tmp_path, "x") as outputs:
            outputs.open("x.json").write(Problem("q", (), "a"))
            assert files_of(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_of(tmp_path) == {}
    (tmp_path / "x_manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"x_manifest\.json: is not a manifest"), Outputs(tmp_path, "x"):
        pass
    assert files_of(tmp_path) == {"x_manifest.json": b"[]"}
