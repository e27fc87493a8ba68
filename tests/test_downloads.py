"""Scripts that download: each file is fetched once, continued where it stopped, and never accepted unchecked."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from making_downloads import Checkout, Server
from making_preprocessing import FIXTURES, ROOT, files_of, gsm, sha

from coconut_ds.data.downloads import ContentHash, expected_counts
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.errors import DataError

REAL = ROOT.parent / "shared" / "data"  # the files of the lists, if they were downloaded before


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def checkout(tmp_path: Path, server: Server) -> Checkout:
    made = Checkout(tmp_path, server)
    lines = (FIXTURES / "gsm_valid.txt").read_bytes()
    count = lines.count(b"\n")
    made.serve(
        "gsm_icot.sha256",
        {"train.txt": (lines * 30, count * 30), "valid.txt": (lines, count), "test.txt": (lines * 2, count * 2)},
    )
    return made


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_download_converts_once_and_says_what_is_unchecked(checkout: Checkout) -> None:
    done = checkout.run("gsm_icot.bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"test.txt: sha256 {sha(checkout.server.files['test.txt'])}, not checked" in done.stdout
    assert "train.txt: sha256" not in done.stdout
    assert files_of(checkout.data / "gsm_raw") == checkout.server.files
    assert len(load_problems(checkout.data / "gsm_train.json")) == 300
    assert checkout.server.asked == [(name, None) for name in ("train.txt", "valid.txt", "test.txt")]
    before = files_of(checkout.data)
    done = checkout.run("gsm_icot.bash")
    assert (done.returncode, done.stderr, checkout.server.asked) == (0, "", [])
    assert files_of(checkout.data) == before


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("whole", [False, True])
def test_download_continues_where_it_stopped(checkout: Checkout, ranges: bool, whole: bool) -> None:
    """A part of a file with and without a known checksum, half or complete; without ranges the server sends everything.

    Complete by checksum: not requested. Complete by size, which only the server knows: the rest is requested, and the
    file kept.
    """
    checkout.server.ranges = ranges
    raw = checkout.data / "gsm_raw"
    raw.mkdir(parents=True)
    stops = {}
    for name in ("train.txt", "test.txt"):
        content = checkout.server.files[name]
        stops[name] = len(content) if whole else len(content) // 2
        (raw / f"{name}.part").write_bytes(content[: stops[name]])
    done = checkout.run("gsm_icot.bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert files_of(raw) == checkout.server.files
    assert (("train.txt", f"bytes={stops['train.txt']}-") in checkout.server.asked) == (not whole)
    assert ("test.txt", f"bytes={stops['test.txt']}-") in checkout.server.asked
    assert (("test.txt", None) in checkout.server.asked) == (not ranges and not whole)


@pytest.mark.slow
def test_wrong_files_are_refused_with_a_remedy(checkout: Checkout) -> None:
    raw, right = checkout.data / "gsm_raw", dict(checkout.server.files)
    checkout.server.files["train.txt"] = right["valid.txt"]
    error = one_line(checkout.run("gsm_icot.bash"))
    assert f"train.txt: found sha256 {sha(right['valid.txt'])}, expected {sha(right['train.txt'])}; deleted" in error
    assert files_of(raw) == {}, "a wrong part would be gone on from for ever"

    checkout.server.files = {**right, "test.txt": right["valid.txt"]}
    error = one_line(checkout.run("gsm_icot.bash"))
    assert error.startswith("data/gsm_raw/test.txt: found 10 problems, expected 20; delete data/gsm_raw/test.txt and")
    assert files_of(checkout.data) == {}

    (raw / "train.txt").write_bytes(b"mine")
    error = one_line(checkout.run("gsm_icot.bash"))
    assert error.startswith(f"data/gsm_raw/train.txt: found sha256 {sha(b'mine')}, expected")
    assert (raw / "train.txt").read_bytes() == b"mine"


@pytest.mark.slow
def test_a_file_of_which_only_the_problems_are_known_is_checked_when_it_is_converted(checkout: Checkout) -> None:
    """Whatever its line ends are; another step, answer or order of problems is refused."""
    right = checkout.server.files["test.txt"]
    content = ContentHash()
    for problem in gsm.read_problems(FIXTURES / "gsm_valid.txt"):
        content.add(problem.question, problem.answer, gsm.plain_steps(problem))
    digest = content.hexdigest()
    listed = checkout.folder / "preprocessing" / "gsm_icot.sha256"
    lines = listed.read_text().splitlines()
    checkout.server.files["test.txt"] = right[: len(right) // 2]
    listed.write_text("\n".join([*lines[:-1], f"content:{digest} - 10 test.txt"]) + "\n")
    done = checkout.run("gsm_icot.bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert "test.txt: sha256" not in done.stdout
    file = checkout.data / "gsm_raw" / "test.txt"
    before = file.read_text()
    for wrong in (before.replace("1", "2", 1), "".join(sorted(before.splitlines(keepends=True)))):
        file.write_text(wrong)
        error = one_line(checkout.run("gsm_icot.bash", "--overwrite"))
        assert error.startswith("data/gsm_raw/test.txt: found problems with sha256 ")
        assert f", expected {digest}; delete data/gsm_raw/test.txt and run the script" in error


def test_the_hash_of_problems_is_that_of_their_json() -> None:
    problems = list(gsm.read_problems(FIXTURES / "gsm_valid.txt"))
    items, content = [], ContentHash()
    for one in problems:
        items.append({"question": one.question, "answer": one.answer, "steps": gsm.plain_steps(one)})
        content.add(one.question, one.answer, gsm.plain_steps(one))
    assert content.hexdigest() == sha(json.dumps(items, indent=2, ensure_ascii=False).encode())
    assert ContentHash().hexdigest() == sha(b"[]")


@pytest.mark.slow
def test_without_network_or_file_one_line_says_what_to_do(checkout: Checkout) -> None:
    part = checkout.data / "gsm_raw" / "train.txt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(checkout.server.files["train.txt"][:100])
    del checkout.server.files["train.txt"]
    absent = one_line(checkout.run("gsm_icot.bash"))
    assert "404" in absent
    checkout.server.stop()
    gone = one_line(checkout.run("gsm_icot.bash"))
    for error in (absent, gone):
        assert error.startswith(f"{checkout.server.url}/train.txt: cannot be downloaded (curl ended with ")
        assert "check the network and run this script again" in error
        assert "GSM_ICOT_URL" in error
    assert part.stat().st_size == 100


@pytest.mark.slow
def test_published_prosqa_replaces_other_files_only_when_told(checkout: Checkout) -> None:
    names = [f"prosqa_{split}.json" for split in ("valid", "train", "test")]
    items = [Problem("q?", ("s.",), "a.", {"root": 0}).as_dict()]
    published = {name: (json.dumps(items * count).encode(), count) for count, name in enumerate(names, start=1)}
    checkout.serve("prosqa.sha256", published)
    for name in names[:2]:
        checkout.data.mkdir(exist_ok=True)
        (checkout.data / name).write_text(json.dumps(items * 9))
    before = files_of(checkout.data)
    error = one_line(checkout.run("prosqa.bash"))
    assert error.startswith("data/prosqa_train.json, data/prosqa_valid.json: found other content than the published")
    assert "bash preprocessing/prosqa.bash --overwrite" in error
    assert files_of(checkout.data) == before

    done = checkout.run("prosqa.bash", "--force")  # the earlier name of --overwrite
    assert (done.returncode, done.stderr, checkout.server.asked) == (0, "", [])
    found = files_of(checkout.data)
    entries = json.loads(found.pop("prosqa_manifest.json"))["outputs"]
    assert found == checkout.server.files
    assert {name: (entry["problems"], entry["sha256"]) for name, entry in entries.items()} == {
        name: (count, sha(content)) for name, (content, count) in published.items()
    }
    assert checkout.run("prosqa.bash").returncode == 0, "the published files are no others"


@pytest.mark.slow
def test_published_prosqa_of_another_size_is_refused(checkout: Checkout) -> None:
    text = json.dumps([Problem("q?", ("s.",), "a.").as_dict()]).encode()
    names = [f"prosqa_{split}.json" for split in ("valid", "train", "test")]
    checkout.serve("prosqa.sha256", {name: (text, 1 + (name == names[2])) for name in names})
    error = one_line(checkout.run("prosqa.bash"))
    assert error.startswith("data/prosqa_raw/prosqa_test.json: found 1 problems, expected 2; delete")
    assert files_of(checkout.data) == {}


def test_every_download_has_a_commit_and_a_hash() -> None:
    """No file comes from a branch, and none is accepted unchecked."""
    for name, files in (("gsm_icot", 3), ("prosqa", 3)):
        folder = ROOT / "preprocessing"
        lines = [line.split() for line in (folder / f"{name}.sha256").read_text().splitlines() if line[:1] != "#"]
        assert len(lines) == files
        assert all(re.fullmatch("(content:)?[0-9a-f]{64}", line[0]) for line in lines)
        (commit,) = re.findall(r"/([0-9a-f]{40})/data", (folder / f"{name}.bash").read_text())
        assert f"at {commit}, folder data" in (folder / f"{name}.sha256").read_text().splitlines()[0]


def test_lists_of_downloads_hold_every_split_and_name_a_bad_line(tmp_path: Path) -> None:
    folder = ROOT / "preprocessing"
    assert expected_counts(folder / "gsm_icot.sha256") == {"train.txt": 385_620, "valid.txt": 500, "test.txt": 1319}
    sizes = {"prosqa_train.json": 17_886, "prosqa_valid.json": 300, "prosqa_test.json": 500}
    assert expected_counts(folder / "prosqa.sha256") == sizes
    (tmp_path / "list").write_text("# a comment\n\nunknown - many a.txt\n")
    with pytest.raises(DataError, match=r"list: line 3: found 'unknown - many a\.txt'"):
        expected_counts(tmp_path / "list")
    (tmp_path / "list").write_text(f"unknown - {'1' * 5000} a.txt\n")
    with pytest.raises(DataError, match=r"list: line 1: found 'unknown - 1{70}'"):
        expected_counts(tmp_path / "list")


@pytest.mark.skipif(not REAL.is_dir(), reason="no larger samples here")
def test_the_published_hash_of_problems_is_that_of_the_real_file() -> None:
    """The list that states the hash for test.txt states this one for valid.txt."""
    content = ContentHash()
    for one in gsm.read_problems(REAL / "gsm8k_aug_valid.txt"):
        content.add(one.question, one.answer, gsm.plain_steps(one))
    assert content.hexdigest() == "1cc0d534fc020afc0165faba35f105283e5e7afed51acc0ea041c29ca0c97928"


@pytest.mark.skipif(not REAL.is_dir(), reason="no larger samples here")
@pytest.mark.parametrize(
    ("listed", "name", "real"),
    [("gsm_icot", "valid.txt", "gsm8k_aug_valid.txt"), ("prosqa", "prosqa_valid.json", "prosqa_valid.json")],
)
def test_lists_of_downloads_are_true_of_the_real_files(listed: str, name: str, real: str) -> None:
    content = (REAL / real).read_bytes()
    assert f"\n{sha(content)} {len(content)} " in (ROOT / "preprocessing" / f"{listed}.sha256").read_text()
