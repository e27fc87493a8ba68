"""README's quickstart and the notebook print what they show; files that are made from others are current."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from comparing_output import differences
from launching import environment, run

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SCRIPTS = {"coconut-eval": "evaluate.py", "coconut-train": "train.py"}


def quickstart() -> list[tuple[str, str, str]]:
    """Language, content and shown output of each block of the quickstart that has an output."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quickstart\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```(bash|python)\n(.*?)```\n+```text\n(.*?)```", text, flags=re.DOTALL)


def printed_by(command: list[str | Path], folder: Path) -> str:
    done = run(command, environment(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_quickstart_prints_what_the_readme_shows(tmp_path):
    blocks = quickstart()
    assert [language for language, _, _ in blocks] == ["bash", "python", "bash"]
    # The checkout's own files, as for a user; none of them may change.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    before = {path: path.read_bytes() for path in (ROOT / "examples").rglob("*") if path.is_file()}
    for language, content, shown in blocks:
        if language == "python":
            (tmp_path / "script.py").write_text(content, encoding="utf-8")
            command: list[str | Path] = [tmp_path / "script.py"]
        else:
            program, *words = shlex.split(content.replace("\\\n", " "), comments=True)
            command = [ROOT / "coconut_ds" / SCRIPTS[program], *words]
        # Lines about single updates come every 30 s, which only slow machines need.
        printed = re.sub(r"^update .*\n", "", printed_by(command, tmp_path), flags=re.MULTILINE)
        assert differences(shown, printed) == [], content
    assert {path: path.read_bytes() for path in (ROOT / "examples").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    parts = [f"{''.join(cell['source'])}\nprint('end of the cell')\n" for cell in cells]
    (tmp_path / "notebook.py").write_text("".join(parts), encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    *printed, rest = printed_by([tmp_path / "notebook.py"], tmp_path).split("end of the cell\n")
    assert (len(printed), rest) == (len(cells), "")
    for cell, output in zip(cells, printed, strict=True):
        shown = "".join(line for one in cell["outputs"] for line in one["text"])
        if "varies" in cell["metadata"].get("tags", ()):
            assert output.endswith("exit code 0 coconut\n")
        else:
            assert shown, "a cell without its output"
            assert differences(shown, output) == []


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("loss  0.50   12 s", "loss 0.52 13 s", True),
        ("loss 0.50", "loss 0.70", False),
        ("cab 95%", "cba 95%", False),
        ("run: outputs/…", "run: outputs/toy/aa11", True),
        ("loss 0.50 in … s", "loss 0.52 in 17 s", True),
        ("loss 0.50 in … s", "loss 0.72 in 17 s", False),
        ("right 5.0%", "right 10.0%", True),
        ("right 5.0%", "right 15.0%", False),
        ("a\nb", "a", False),
    ],
)
def test_words_are_compared_exactly_and_numbers_nearly(shown, printed, equal):
    assert (differences(shown, printed) == []) is equal


def test_the_reference_of_the_python_api_is_current():
    """If this fails: ``python docs/write_api.py``."""
    page = runpy.run_path(str(ROOT / "docs" / "write_api.py"))["render"]()
    assert page == (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert "Parts[" not in page, "a program that calls the function gets the result itself"


def test_the_citation_names_the_version_and_the_paper():
    values = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{values["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert values["preferred-citation"]["title"] in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["train.sh", "train.sbatch"])
def test_the_job_files_are_those_that_the_documentation_explains(name):
    content = (ROOT / "examples" / "slurm" / name).read_text(encoding="utf-8")
    assert f"```bash\n{content}```" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", ROOT / "examples" / "slurm" / name], check=False).returncode == 0


def test_the_images_are_made_of_files_and_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^FROM \S+ AS (\w+)$", text, flags=re.MULTILINE)) == {"base", "cpu", "cuda"}
    for word in re.findall(r"^COPY (\S+) ", text, flags=re.MULTILINE):
        assert (ROOT / word).exists()
    left_out = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        assert any(fnmatch(line.strip("/"), pattern) for pattern in left_out), line
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert [name for name in extras.split(",") if f"\n{name} = [" not in project] == []


@pytest.mark.docker
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_built_and_says_its_versions(target):
    """Takes minutes and needs a network: ``python -m pytest -m docker tests/test_quickstart.py``."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no Docker")
    name = f"coconut-ds-test:{target}"
    subprocess.run(["docker", "build", "--target", target, "-t", name, str(ROOT)], check=True)
    shown = subprocess.run(
        ["docker", "run", "--rm", name, "coconut-train", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("coconut-ds ")
