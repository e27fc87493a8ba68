"""Made-up rows of the published benchmarks, in their formats, and files of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from coconut_ds.data.benchmarks import BENCHMARKS, Benchmark, RepositoryFile

NUM_ROWS = 20
NUMBERS = ("0", "-3", "1,345", "2.5", "72", "1.69726e-05", "90205.775", "007")
"""Answers that are easy to change by accident; every format of numbers has them."""
Row = dict[str, Any]


def _asked(index: int) -> str:
    return f"Ann has {index} boxes,  each with <{index + 2}> \u201cpens\u201d. How many pens\nare there?"


def _reasoned(answer: Callable[[int], Any]) -> Callable[[int], Row]:
    def row(index: int) -> Row:
        cot = f"Each box holds {index + 2} pens. So {index} * {index + 2} = {index * (index + 2)}."
        return {"question": _asked(index), "cot": cot, "answer": answer(index)}

    return row


def _number(index: int) -> str:
    return NUMBERS[index % len(NUMBERS)]


def _float(index: int) -> float:
    return float(_number(index).replace(",", ""))


def _gsm_plus(index: int) -> Row:
    # The answers of one kind of question are missing on purpose, as in the published file.
    kind, answer = ("critical thinking", "None") if index % 8 == 7 else ("digit expansion", _number(index))
    return {
        "question": _asked(index),
        "solution": f"First {index}.\nThen {index + 2}.",
        "answer": answer,
        "perturbation_type": kind,
        "seed_question": "Ann has boxes?",
        "seed_solution": "One.\n#### 1",
        "seed_answer": "1",
    }


def _svamp(index: int) -> Row:
    return {
        "ID": f"chal-{index}",
        "Body": f"Ann has {index} pens",
        "Question": "How many pens?",
        "Equation": f"( {index}.0 - 1.0 )",
        "Answer": _number(index),
        "Type": "Subtraction",
        "question_concat": f"Ann has {index} pens How many pens?",
    }


def _math(index: int) -> Row:
    return {
        "problem": f"Compute $\\frac{{{index}}}{{4}}$.",
        "solution": f"We have\n\\[{index}/4\\]\nso it is $\\boxed{{\\frac{{{index}}}{{4}}}}$.",
        "answer": f"\\frac{{{index}}}{{4}}",
        "subject": "Algebra",
        "level": 1 + index % 5,
        "unique_id": f"test/algebra/{index}.json",
    }


def _choice(index: int) -> Row:
    question = f"Where is pen {index}? Choices:\nA: desk B: sea C: air D: sun E: fire"
    return {"question": question, "cot": "Pens are written with. Desks have pens.", "answer": "ABCDE"[index % 5]}


ROWS: dict[str, Callable[[int], Row]] = {
    "gsm8k_aug_nl": _reasoned(_number),
    "gsm_hard": lambda index: {"instruction": _asked(index), "response": _number(index)},
    "gsm_hard_pal": lambda index: {
        "input": _asked(index),
        "code": "def solution():\n    return 1",
        "target": _float(index),
    },
    "gsm_hard_svp": lambda index: {"question": _asked(index), "answer": _number(index), "steps": ["Step 1", "Step 2"]},
    "svamp": _svamp,
    "svamp_test": _svamp,
    "multiarith_test": lambda index: {"question": f" {_asked(index)} ", "final_ans": _number(index)},
    "multiarith_580": lambda index: {"question": f" {_asked(index)} ", "answer": _number(index)},
    "asdiv_a": lambda index: {
        "question": _asked(index),
        "answer": _float(index),
        "grade": index % 6,
        "formula": "7+2=9",
    },
    "gsm_plus": _gsm_plus,
    "gsm_plus_mini": _gsm_plus,
    "gsm_plus_svp": lambda index: {"question": _asked(index), "answer": _float(index), "seed_question": "Ann?"},
    "commonsenseqa": _choice,
    "strategyqa": _reasoned(lambda index: str(index % 2 == 0)),
    "strategyqa_test": lambda index: {
        "qid": f"{index:x}",
        "question": _asked(index),
        "answer": index % 2 == 0,
        "facts": "x",
    },
    "math500": _math,
}
"""By the name of a benchmark: its row with a number."""


def rows_of(name: str) -> dict[str, list[Row]]:
    """Made-up rows of each published split; no two splits have the same."""
    splits = BENCHMARKS[name].splits
    return {split: [ROWS[name](100 * place + index) for index in range(NUM_ROWS)] for place, split in enumerate(splits)}


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Writes rows in the format that the ending of the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("[" + ",\n".join(lines) + "]\n" if path.suffix == ".json" else "\n".join(lines) + "\n")
    return path


def write_copy(benchmark: Benchmark, mirror: Path) -> Path:
    """A copy of a benchmark's source in a folder of such copies, laid out as published."""
    rows, source = rows_of(benchmark.name), benchmark.source
    if isinstance(source, RepositoryFile):
        return write_rows(mirror / source.repository / source.path, rows[benchmark.splits[0]])
    for split, own in rows.items():
        write_rows(mirror / source.name / "data" / f"{split}-00000-of-00001.parquet", own)
    return mirror / source.name
