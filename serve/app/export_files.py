"""Converts results to files (JSON, CSV and PNG) in memory."""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.files import seal_of
from coconut_ds.probing import figures, graph_figures, state_figures, state_reports
from coconut_ds.probing.export import Row, row_of
from coconut_ds.probing.intervene import InterventionReport
from coconut_ds.probing.trace import ThoughtTrace
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import signature
from serve.app.intervention_figures import arm_name
from serve.app.results import (
    CompareResult,
    DataSetResult,
    InterventionResult,
    Result,
    SearchResult,
    StatesResult,
    ThinkResult,
)
from serve.app.words import KINDS, words_of
from serve.checkpoints.offered import Checkpoints


@dataclass(frozen=True)
class File:
    """A file that visitors can download."""

    name: str
    media_type: str
    content: bytes
    signature: str
    """Signature of the result, for the name of the downloaded file."""

    @property
    def download_name(self) -> str:
        """The name with the signature, so that another result does not replace the file in the visitor's folder."""
        path = Path(self.name)
        return f"{path.stem}-{self.signature}{path.suffix}"


Drawing = Callable[[Path], None]
"""Draws a figure and writes it to a path as PNG."""


def files_of(result: Result, page: str, made_from: Mapping[str, Any] | None = None) -> list[File]:
    """All files of a result; file names begin with the name of the page.

    Args:
        result: the result.
        page: name of its page.
        made_from: further keys of the JSON file: what the result was made from, see ``made_from``.
    """
    values = {**result.as_dict(), **(made_from or {})}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    # What went in and what came out: also equal questions to other weights under the same name are told apart.
    own = signature(values)
    found = [File(f"{page}.json", "application/json", text.encode(), own)]
    rows, drawings = _parts(result)
    found += [File(f"{page}-{name}.csv", "text/csv", _csv(table), own) for name, table in rows.items() if table]
    return found + [File(f"{page}-{name}.png", "image/png", _drawn(draw), own) for name, draw in drawings.items()]


def made_from(result: Result, checkpoints: Checkpoints) -> dict[str, Any]:
    """The checkpoints of a result (card, and sha256 of the weights' files if they are known), and the code.

    Paths and the configuration of the training are left out, because visitors need not know the server's folders.
    """
    names = result.models if isinstance(result, CompareResult) else (result.model,)
    found = {}
    for name in names:
        card = checkpoints[name].card.as_dict()
        del card["provenance"]
        files = (seal_of(checkpoints[name].folder) or {"files": {}})["files"]
        weights = {file: known.get("sha256") for file, known in files.items() if file.endswith(".safetensors")}
        found[name] = {**card, "weights": weights}
    return {"checkpoints": found, "code": code_identity()}


def _parts(result: Result) -> tuple[dict[str, list[Row]], dict[str, Drawing]]:
    """The rows of each CSV file and the drawing of each PNG file, by name."""
    if isinstance(result, ThinkResult):
        trace = result.trace
        rows = {"thoughts": _thoughts(trace), "answers": [row_of(one) for one in result.answers]}
        drawings: dict[str, Drawing] = {"thoughts": lambda path: figures.draw_thoughts(trace, path)}
        if trace.thoughts:
            drawings["layers"] = lambda path: figures.draw_layers(trace, path)
        return rows, drawings
    if isinstance(result, SearchResult):
        view = result.view
        values = [row_of(node, num_thoughts=one.num_thoughts) for one in view.after for node in one.nodes]
        hops = [row_of(one) for one in result.hops]
        return {"values": values, "hops": hops}, {
            "graph": lambda path: graph_figures.draw_graph(view, path, result.model)
        }
    if isinstance(result, InterventionResult):
        report = result.report
        rows = {"outcomes": _outcomes([report]), "overview": _outcomes(result.overview)}
        what = KINDS[report.intervention.kind]
        return rows, {
            "outcomes": lambda path: figures.draw_report(report, path, what, lambda arm: arm_name(report, arm))
        }
    if isinstance(result, CompareResult):
        both = [
            row | {"model": model}
            for model, trace in zip(result.models, result.traces, strict=True)
            for row in _thoughts(trace)
        ]
        return {"thoughts": both}, {
            name: _thoughts_drawing(trace) for name, trace in zip(("first", "second"), result.traces, strict=True)
        }
    if isinstance(result, StatesResult):
        return _states_parts(result)
    return _data_set_parts(result)


def _states_parts(result: StatesResult) -> tuple[dict[str, list[Row]], dict[str, Drawing]]:
    attention, patching = result.attention, result.patching
    if attention is not None:
        rows = {"attention": state_reports.attention_rows(attention), "edges": state_reports.edge_rows(attention)}
        return rows, {"attention": lambda path: state_figures.draw_attention(attention, path)}
    assert patching is not None
    rows = {"patching": state_reports.patching_rows(patching)}
    return rows, {"patching": lambda path: state_figures.draw_patching(patching, path)}


def _data_set_parts(result: DataSetResult) -> tuple[dict[str, list[Row]], dict[str, Drawing]]:
    rows = {
        name: [row_of(one) for one in values]
        for name, values in (
            ("sweep", result.points),
            ("effects", result.effects),
            ("probes", result.probes),
            ("heights", result.heights),
        )
    }
    title = f"{result.model}, {result.num_problems} problems of {result.file}"
    drawings: dict[str, Drawing] = {}
    if result.points:
        drawings["sweep"] = lambda path: figures.draw_sweep_points(result.points, path, title)
    if result.effects:
        drawings["effects"] = lambda path: figures.draw_effects(result.effects, path, title, words_of)
    if result.probes:
        drawings["probes"] = lambda path: figures.draw_probes(result.probes, path, title)
    if result.parallelism:
        drawings["parallelism"] = lambda path: graph_figures.draw_parallelism(result.parallelism, path, title)
    return rows, drawings


def _thoughts_drawing(trace: ThoughtTrace) -> Drawing:
    return lambda path: figures.draw_thoughts(trace, path)


def _thoughts(trace: ThoughtTrace) -> list[Row]:
    """One row for each token of each layer of each thought."""
    return [
        {"thought": one.number, "layer": layer, "rank": rank + 1, "token": token, "probability": probability}
        | {"entropy": state.entropy, "norm": one.norm, "cosine_to_previous": one.cosine_to_previous}
        for one in trace.thoughts
        for layer, state in enumerate(one.layers)
        for rank, (token, probability) in enumerate(zip(state.tokens, state.probabilities, strict=True))
    ]


def _outcomes(reports: Sequence[InterventionReport]) -> list[Row]:
    return [
        row_of(one, change=report.intervention.name, thought=report.intervention.thought, arm=arm.name, draw=draw)
        for report in reports
        for arm in (report.effect, *report.controls)
        for draw, one in enumerate(arm.outcomes)
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list({key: None for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _drawn(draw: Drawing) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()
