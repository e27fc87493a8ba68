"""The published benchmarks: where each is, in which shape, how many problems it has, and how it becomes our files.

Several files often go by the name of one benchmark. Each has a name of its own here, since their scores differ.
``preprocessing/benchmarks.py`` reads and writes them; ``docs/data.md`` describes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coconut_ds.data.convert import Converter, KeyMapping
from coconut_ds.data.problem import REQUIRED_KEYS, Problem
from coconut_ds.errors import DataError

SEPARATORS = {"lines": "\n", "sentences": " ", "none": ""}
"""What separates the steps of a text, by the way in which it was split (``convert.SPLITS``)."""
ROW = "row"
"""Key under which a problem keeps its published row, where ``as_row`` could not restore it otherwise."""
SVP = "jihwan1205/Singular-Value-Perturbation"


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub."""

    name: str
    revision: str | None = None
    """A commit; None: the newest version."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class RepositoryFile:
    """A JSON file in a repository on GitHub, which has only one split."""

    repository: str
    revision: str
    """A commit."""
    path: str

    @property
    def address(self) -> str:
        """Where the file can be downloaded."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/{self.path}"

    def __str__(self) -> str:
        return f"{self.repository}, {self.path}@{self.revision}"


@dataclass(frozen=True)
class Part:
    """One of our files, made from published splits."""

    splits: tuple[str, ...] = ("test",)
    """Names of the splits, whose rows are joined in this order."""
    problems: tuple[int, ...] = ()
    """Numbers of problems that the splits may have; none: not known here."""
    last: int = 0
    """Take only this many rows from the end; 0: all."""
    without_last: int = 0
    """Leave out this many rows at the end, which another part takes."""
    content: str | None = None
    """SHA-256 of the problems (``downloads.ContentHash``); None: not known here."""

    def rows(self, of_split: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The rows of this part, given those of each split."""
        rows = [row for split in self.splits for row in of_split[split]]
        return rows[len(rows) - self.last if self.last else 0 : len(rows) - self.without_last]


@dataclass(frozen=True)
class Benchmark:
    """One published benchmark."""

    name: str
    source: HubDataset | RepositoryFile
    keys: KeyMapping
    """Where question, steps and answer are in a row."""
    parts: Mapping[str, Part]
    """By name: train, valid and test. A benchmark with a single part has a single file, ``NAME.json``."""
    answers: type[str] | type[float] | type[bool] = str
    """The type of the answers in the rows."""

    @property
    def splits(self) -> list[str]:
        """The published splits that the parts are made from, each once."""
        return list(dict.fromkeys(split for part in self.parts.values() for split in part.splits))

    def file(self, part: str) -> str:
        """The name of our file with a part."""
        return f"{self.name}.json" if len(self.parts) == 1 else f"{self.name}_{part}.json"

    def problems(self, rows: Sequence[Any], where: str) -> Iterator[Problem]:
        """The problems of published rows, in order. ``as_row`` turns each back into its row.

        Raises:
            DataError: a row has another shape; ``where`` names the rows.
        """
        if rows and isinstance(rows[0], dict):
            missing = [key for key in self.keys.used if key not in rows[0]]
            if missing:
                raise DataError(
                    f"{where}: item 0 lacks {', '.join(missing)}; found the keys {', '.join(rows[0])}, expected the "
                    f"published format of {self.name} ({self.source})"
                )
        for row, problem in zip(rows, Converter(self.keys, where).convert(rows), strict=True):
            yield problem if self.as_row(problem) == row else replace(problem, extra={**problem.extra, ROW: row})

    def as_row(self, problem: Problem) -> dict[str, Any]:
        """The published row from which ``problems`` made a problem."""
        if ROW in problem.extra:
            return dict(problem.extra[ROW])
        keys = self.keys
        row = {_published(key): value for key, value in problem.extra.items()}
        row[keys.question[0]] = problem.question
        if keys.steps is not None:
            row[keys.steps] = SEPARATORS[keys.split].join(problem.steps)
        if keys.answer is not None:
            row[keys.answer] = (
                problem.answer == "True" if self.answers is bool else _typed(self.answers, problem.answer)
            )
        return row


def _typed(kind: type[str] | type[float] | type[bool], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _published(key: str) -> str:
    """The published name of a key that was renamed because it is one of ours."""
    name = key.removesuffix("_in_file")
    return name if name in REQUIRED_KEYS else key


def _keys(question: str, answer: str, steps: str | None = None, split: str = "sentences") -> KeyMapping:
    return KeyMapping((question,), steps, answer, split)


def _of_svp(commit: str, file: str) -> RepositoryFile:
    return RepositoryFile(SVP, commit, f"data/{file}.json")


_REASONED = _keys("question", "answer", "cot")
_PLAIN = _keys("question", "answer")
_SVAMP = _keys("question_concat", "Answer")
_GSM_PLUS = _keys("question", "answer", "solution", "lines")

BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark(
            "gsm8k_aug_nl",
            HubDataset("zen-E/GSM8k-Aug-NL"),
            _REASONED,
            {"train": Part(("train",)), "valid": Part(("validation",)), "test": Part(("test",), (1319,))},
        ),
        Benchmark(
            "gsm_hard",
            HubDataset("juyoung-trl/gsm-hard"),
            _keys("instruction", "response"),
            {"test": Part(("train",), (1318, 1319))},
        ),
        Benchmark(
            "gsm_hard_pal",
            HubDataset("reasoning-machines/gsm-hard"),
            _keys("input", "target"),
            {"test": Part(("train",), (1319,))},
            answers=float,
        ),
        Benchmark(
            "gsm_hard_svp",
            _of_svp("a5223c78ada2f230ef2e814d1c4fa0485bfac36b", "gsm_hard"),
            _PLAIN,
            {"test": Part(("train",), (1318, 1319))},
        ),
        Benchmark("svamp", HubDataset("ChilleD/SVAMP"), _SVAMP, {"test": Part(("train", "test"), (1000,))}),
        Benchmark("svamp_test", HubDataset("ChilleD/SVAMP"), _SVAMP, {"test": Part(("test",), (300,))}),
        Benchmark(
            "multiarith_test",
            HubDataset("ChilleD/MultiArith"),
            _keys("question", "final_ans"),
            {"test": Part(("test",), (180,))},
        ),
        Benchmark(
            "multiarith_580",
            _of_svp("366d61ebd6370a0f5a2f8e07d49bd8be4a622b12", "multiarith"),
            _PLAIN,
            {"test": Part(("train",), (580,))},
        ),
        Benchmark(
            "asdiv_a",
            _of_svp("a5223c78ada2f230ef2e814d1c4fa0485bfac36b", "asdiv_a"),
            _PLAIN,
            {"test": Part(("train",), (1218,))},
            answers=float,
        ),
        Benchmark("gsm_plus", HubDataset("qintongli/GSM-Plus"), _GSM_PLUS, {"test": Part(("test",), (10552,))}),
        Benchmark("gsm_plus_mini", HubDataset("qintongli/GSM-Plus"), _GSM_PLUS, {"test": Part(("testmini",), (2400,))}),
        Benchmark(
            "gsm_plus_svp",
            _of_svp("366d61ebd6370a0f5a2f8e07d49bd8be4a622b12", "gsm_plus"),
            _PLAIN,
            {"test": Part(("train",), (2100,))},
            answers=float,
        ),
        Benchmark(
            "commonsenseqa",
            HubDataset("zen-E/CommonsenseQA-GPT4omini"),
            _REASONED,
            {
                "train": Part(("train",), without_last=500),
                "valid": Part(("train",), last=500),
                "test": Part(("validation",), (1221,)),
            },
        ),
        Benchmark(
            "strategyqa",
            HubDataset("zen-E/StrategyQA_CoT_GPT4o"),
            _REASONED,
            {"train": Part(("train",), without_last=200), "valid": Part(("train",), last=200)},
        ),
        Benchmark(
            "strategyqa_test",
            HubDataset("ChilleD/StrategyQA"),
            _PLAIN,
            {"test": Part(("test",), (687,))},
            answers=bool,
        ),
        Benchmark(
            "math500",
            HubDataset("HuggingFaceH4/MATH-500"),
            _keys("problem", "answer", "solution", "lines"),
            {"test": Part(("test",), (500,))},
        ),
    )
}
"""The registry of benchmarks, by name. ``docs/data.md`` says where the numbers of problems come from."""
