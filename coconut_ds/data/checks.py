"""What an evaluation cannot score or analyse in a set of problems, as warnings before the first pass.

A problem without an answer that scoring can read is answered but not scored. A graph problem whose graph cannot be used
is scored, but gets no category and does not count for the shortcuts.
"""

from collections.abc import Sequence
from pathlib import Path

from coconut_ds.data.graph_answers import graph_fault, is_graph_problem
from coconut_ds.data.problem import Problem
from coconut_ds.files import fingerprint
from coconut_ds.formats import Format
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring
from coconut_ds.settings import DataConfig
from coconut_ds.strict_json import read_json, shown


def warnings_about(problems: Sequence[Problem], form: Format, where: str, scoring: Scoring = EXACT) -> list[str]:
    """One line for each kind of fault, which names the first problem with it and counts all.

    Args:
        problems: of one file or split.
        form: the format in which they are written.
        where: the name of the file or split.
        scoring: the convention by which they are scored.
    """
    lines = (_unread(problems, form, where, scoring), _altered(problems, form, where, scoring))
    return [f"warning: {line}" for line in lines if line is not None] + graph_warnings(problems, where)


def file_warnings(path: str | Path) -> list[str]:
    """A line if a file of problems is not as the program that prepared it recorded (``*_manifest.json`` beside it).

    It may have been edited; or a disk or a copy has damaged it, which nothing else would show.

    Args:
        path: a file of problems, or the name of generated ones.
    """
    path = Path(path)
    if not path.is_file():
        return []
    for manifest in sorted(path.parent.glob("*_manifest.json")):
        try:
            known = read_json(manifest)["outputs"].get(path.name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Another program's file.
            continue
        if isinstance(known, dict) and known.get("sha256") not in (None, fingerprint(path)["sha256"]):
            return [
                f"warning: {path}: is not the file that {manifest.name} describes (its SHA-256 differs): it was edited "
                "or is damaged; if you have not edited it, prepare it again"
            ]
    return []


def graph_warnings(problems: Sequence[Problem], where: str) -> list[str]:
    """A line if the graphs of some graph problems cannot be used; names the first of them and counts all.

    Args:
        problems: of one file or split.
        where: the name of the file or split.
    """
    graphs = [index for index, one in enumerate(problems) if is_graph_problem(one)]
    faults = {i: fault for i in graphs if (fault := graph_fault(problems[i], f"{where}: item {i}")) is not None}
    if not faults:
        return []
    return [
        f"warning: {next(iter(faults.values()))}; the graphs of {_count(list(faults), problems)} cannot be used: they "
        "get no category and do not count for the shortcuts"
    ]


def is_scored(problem: Problem, form: Format, scoring: Scoring = EXACT) -> bool:
    """Whether texts can be compared with the problem's answer: it is known, and scoring reads something in it."""
    return problem.has_answer and scoring.gold(problem.answer, form) != ""


def name_of(data: DataConfig, split: str) -> str:
    """The name of a split in messages: its file, or the kind of the generated problems.

    Args:
        data: describes the problems.
        split: ``training``, ``test`` or ``validation``.
    """
    path = {"training": data.train_path, "test": data.test_path}.get(split, data.val_path)
    return str(path) if data.kind == "file" else f"data={data.kind}, {split}"


def _unread(problems: Sequence[Problem], form: Format, where: str, scoring: Scoring) -> str | None:
    found = [index for index, one in enumerate(problems) if one.has_answer and not is_scored(one, form, scoring)]
    if not found:
        return None
    return (
        f"{where}: item {found[0]}, key 'answer': scoring reads nothing in {shown(problems[found[0]].answer)}; "
        f"{_count(found, problems)} are answered but not scored"
    )


def _altered(problems: Sequence[Problem], form: Format, where: str, scoring: Scoring) -> str | None:
    scored = ((index, one) for index, one in enumerate(problems) if is_scored(one, form, scoring))
    found = [index for index, one in scored if scoring.alters(one.answer, form)]
    if not found:
        return None
    answer = problems[found[0]].answer
    read = shown(scoring.gold(answer, form))
    return (
        f"{where}: item {found[0]}, key 'answer': scoring reads {read} in {shown(answer)}; the "
        f"answers of {_count(found, problems)} are altered in this way, so look whether the scores mean what you expect"
    )


def _count(found: Sequence[int], problems: Sequence[Problem]) -> str:
    return f"{len(found):,} of {len(problems):,} problems"
