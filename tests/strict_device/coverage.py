"""Which lines that touch tensors the cases execute: those of ``model/``, ``generation/``, ``objectives/`` and the
engine of training.

A line is a statement in a function; definitions and docstrings do not count. It touches tensors unless its function is
in ``NO_TENSORS``, where each entry says why. A statement over several lines counts as one.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage

PACKAGE = Path(__file__).resolve().parents[2] / "coconut_ds"
MEASURED = ("model", "generation", "objectives", "training/engine.py", "training/step_numbers.py")
"""Folders and files of the package."""
CONFIGURATION = "reads configurations, names and token ids, and refuses those that do not fit"
FILES = "reads or writes files, with tensors on the CPU; the model moves to the device afterwards"
ON_A_CPU = "computes on a CPU only"
ON_STORAGES = "takes and frees storages, which tensors on this device do not have"
ON_CUDA = "calls functions of torch.cuda"
CUDA_ONLY = ("import triton", "from liger_kernel")
"""Files with one of these imports are not counted: their kernels run only on CUDA, or in an interpreter."""
NO_TENSORS = {
    "model/attention.py:check_attention": CONFIGURATION,
    "model/attention.py:check_attention_used": CONFIGURATION,
    "model/backbone.py:Backbone": CONFIGURATION,
    "model/backbone.py:_check_rows": CONFIGURATION,
    "model/backbone.py:_num_rows": CONFIGURATION,
    "model/backbone.py:architecture": CONFIGURATION,
    "model/backbone.py:build_backbone": FILES,
    "model/card.py": FILES,
    "model/checkpoint.py": FILES,
    "model/compatibility.py": CONFIGURATION,
    "model/feed.py:FeedSpec": CONFIGURATION,
    "model/feed_file.py": FILES,
    "model/folder_files.py": FILES,
    "model/fused.py:Kernels": CONFIGURATION,
    "model/fused.py:choose_kernels": CONFIGURATION,
    "model/generation_config.py": CONFIGURATION,
    "model/precision.py:capability_of": CONFIGURATION,
    "model/readme.py": FILES,
    "model/precision.py:tf32_note": CONFIGURATION,
    "model/precision.py:use_tf32": CONFIGURATION,
    "model/reference_state.py": FILES,
    "model/starting.py": FILES,
    "model/weights_file.py": FILES,
    "model/head.py:vocabulary_product": ON_A_CPU,
    "model/support.py:attention_window": CONFIGURATION,
    "model/support.py:context_length": CONFIGURATION,
    "model/support.py:longest_sequence": CONFIGURATION,
    "model/support.py:refuse_partial": CONFIGURATION,
    "model/support.py:stored_buffers": CONFIGURATION,
    "model/trial.py:Trial.fault": CONFIGURATION,
    "generation/attention.py:_causal_blocks": ON_A_CPU,
    "generation/spans.py": ON_A_CPU,
    "generation/slots.py:SlotLayer.release": ON_STORAGES,
    "generation/slots.py:SlotLayer.reserve": ON_A_CPU,
    "generation/slots.py:SlotLayer.take_memory": ON_STORAGES,
    "generation/slots.py:SlotLayer._longer": ON_A_CPU,
    "generation/slots.py:SlotCache.release": ON_STORAGES,
    "generation/slots.py:SlotCache.take_memory": ON_STORAGES,
    "generation/thinking_engine.py:ThinkingEngine.close": ON_STORAGES,
    "generation/thinking_engine.py:ThinkingEngine.take_memory": ON_STORAGES,
    "generation/slots.py:_row_by_row": ON_A_CPU,
    "generation/step_graphs.py:CudaCapturer": ON_CUDA,
    "generation/pass_size.py": ON_CUDA,
    "generation/decoding.py:token_id": CONFIGURATION,
    "generation/decoding.py:token_names": CONFIGURATION,
    "generation/prompter.py": CONFIGURATION,
    "generation/request_checks.py": CONFIGURATION,
    "generation/requests.py:Request.__post_init__": CONFIGURATION,
    "generation/requests.py:Sampling.__post_init__": CONFIGURATION,
    "generation/requests.py:check_prompts": CONFIGURATION,
    "training/engine.py:Engine.load_directions": FILES,
    "training/engine.py:Engine.load_state": FILES,
    "training/engine.py:Engine.snapshot": FILES,
}
"""Files, and functions or classes in them, whose lines are not counted, with the reason. A line in one of them that
touches a tensor on the device belongs elsewhere."""


def files() -> list[Path]:
    """The files whose lines are counted."""
    found: list[Path] = []
    for name in MEASURED:
        place = PACKAGE / name
        found += [place] if place.is_file() else sorted(place.rglob("*.py"))
    return [file for file in found if not any(name in file.read_text() for name in CUDA_ONLY)]


def statements(file: Path) -> dict[str, set[tuple[int, int]]]:
    """For each function of a file, by its qualified name: the first and last line of each of its statements."""
    found: dict[str, set[tuple[int, int]]] = {}
    for name, function in _functions(ast.parse(file.read_text())):
        spans = {span for statement in function.body for span in _spans(statement)}
        if ast.get_docstring(function) is not None:
            first = function.body[0]
            spans.discard((first.lineno, first.end_lineno or first.lineno))
        if spans:
            found[name] = spans
    return found


def _functions(
    node: ast.AST, outer: tuple[str, ...] = ()
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            path = (*outer, child.name)
            if not isinstance(child, ast.ClassDef):
                yield ".".join(path), child
            yield from _functions(child, path)
        else:
            yield from _functions(child, outer)


def _spans(statement: ast.stmt) -> Iterator[tuple[int, int]]:
    """The lines of a statement and of those inside it; of a compound statement itself, only those before its body."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Global | ast.Nonlocal):
        return
    inner = [child for child in ast.walk(statement) if isinstance(child, ast.stmt) and child is not statement]
    if isinstance(statement, ast.Try):
        # Nothing is executed at ``try`` itself.
        pass
    elif inner:
        yield statement.lineno, max(statement.lineno, min(child.lineno for child in inner) - 1)
    else:
        yield statement.lineno, statement.end_lineno or statement.lineno
    for field in ("body", "orelse", "finalbody"):
        for child in getattr(statement, field, []):
            yield from _spans(child)
    for handler in getattr(statement, "handlers", []):
        for child in handler.body:
            yield from _spans(child)
    for case in getattr(statement, "cases", []):
        for child in case.body:
            yield from _spans(child)


@dataclass(frozen=True)
class Report:
    """The statements that touch tensors, and those of them that were not executed, by file."""

    total: dict[str, int]
    missing: dict[str, list[int]]
    stale: list[str]
    """Entries of ``NO_TENSORS`` that name nothing."""

    @property
    def share(self) -> float:
        """The share of statements that were executed."""
        return 1 - sum(map(len, self.missing.values())) / sum(self.total.values())

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"share": self.share, "total": self.total, "missing": self.missing, "stale": self.stale}

    def __str__(self) -> str:
        lines = [f"{'file':<36}{'lines':>6}{'run':>6}{'share':>8}  not run"]
        for name, total in self.total.items():
            missing = self.missing[name]
            run = total - len(missing)
            lines.append(f"{name:<36}{total:>6}{run:>6}{run / total:>8.1%}  {', '.join(map(str, missing))}".rstrip())
        total, missing_count = sum(self.total.values()), sum(map(len, self.missing.values()))
        lines.append(f"{'all':<36}{total:>6}{total - missing_count:>6}{self.share:>8.1%}")
        lines += [f"NO_TENSORS names what does not exist: {', '.join(self.stale)}"] if self.stale else []
        return "\n".join(lines)


class Coverage:
    """Within ``with Coverage() as coverage:``, notes which lines of the measured files run."""

    def __init__(self) -> None:
        self._files = [str(file) for file in files()]
        # Its tracer is compiled; one in Python would take as long as a third of the cases.
        self._tracer = coverage.Coverage(data_file=None, config_file=False, include=self._files)

    def __enter__(self) -> "Coverage":
        self._tracer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._tracer.stop()

    def report(self) -> Report:
        """What has run so far."""
        total: dict[str, int] = {}
        missing: dict[str, list[int]] = {}
        known = set[str]()
        data = self._tracer.get_data()
        for file in self._files:
            run = set(data.lines(file) or ())
            name = str(Path(file).relative_to(PACKAGE))
            spans: set[tuple[int, int]] = set()
            for function, own in statements(Path(file)).items():
                entries = {name, *(f"{name}:{'.'.join(function.split('.')[:n])}" for n in range(1, 9))} & set(
                    NO_TENSORS
                )
                known |= entries
                if not entries:
                    spans |= own
            if spans:
                total[name] = len(spans)
                missing[name] = sorted(a for a, b in spans if not run.intersection(range(a, b + 1)))
        return Report(total, missing, sorted(set(NO_TENSORS) - known))
