"""What the app shows, tested without a browser: limits, links, escaped text, drawings, measures, exported files."""

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from making_app import GRAPH, HOSTILE, SUMS
from serving import save_checkpoint

from coconut_ds.data.encoding import Place
from coconut_ds.data.problem import Problem
from coconut_ds.errors import CoconutError, DataError
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind
from serve import launch
from serve.app import export_files, markup, measures, thought_figures
from serve.app.export_files import files_of, made_from
from serve.app.graph_drawing import graph_svg
from serve.app.graph_layout import NOTE, layers_of
from serve.app.measures import (
    answers_by_thoughts,
    intervention_overview,
    measure_data_set,
    run_intervention,
    search_graph,
)
from serve.app.problems import ProblemFile, find_files
from serve.app.results import DataSetResult, InterventionResult, ThinkResult
from serve.app.search import hop_table
from serve.app.studio import MAX_CHARACTERS, CheckedQuestion, Studio, followed_tokens, whole_number
from serve.cli import main
from serve.launch import make_service
from serve.limits import EngineSettings, Limits
from serve.requests.service import Service

NEW_TOKENS = 6


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    """Two models with random weights, one of which pauses, and two files."""
    folder = tmp_path_factory.mktemp("app")
    given = [str(save_checkpoint(folder / "thinks")), str(save_checkpoint(folder / "without", "no_cot"))]
    service, _ = make_service(given, EngineSettings(slots=8, max_positions=256), Limits())
    files = {"sums": ProblemFile("sums", SUMS), "graphs": ProblemFile("graphs", (GRAPH,))}
    with pytest.MonkeyPatch.context() as patch:
        # Random weights never end a text by themselves.
        patch.setattr(measures, "MAX_NEW_TOKENS", NEW_TOKENS)
        yield Studio(service, files, {"thinks": "sums"})
    service.close()


def checked_of(studio: Studio, question: str = SUMS[0].question, file: str = "sums") -> CheckedQuestion:
    return studio.check_question("thinks", file, question, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: markup.html_table(HOSTILE, [HOSTILE], [[HOSTILE, HOSTILE]]),
        lambda: markup.answer(HOSTILE, HOSTILE, HOSTILE, False),
        lambda: markup.notice(HOSTILE),
        lambda: markup.hint(HOSTILE),
        lambda: markup.empty(HOSTILE),
        lambda: markup.thinking(1, 2, HOSTILE),
        lambda: markup.unknown(HOSTILE, [Place(0, 8), Place(10, 12)]),
        lambda: markup.progress(HOSTILE, 1, 2),
        lambda: markup.finding(HOSTILE),
        lambda: markup.title(HOSTILE, HOSTILE),
        lambda: markup.download(HOSTILE, "text/csv", HOSTILE.encode(), HOSTILE),
    ],
)
def test_all_text_is_escaped(make):
    html = make()
    assert "<script" not in html
    # Well-formed XML once attributes without values are removed: no quote in the text has ended an attribute.
    ElementTree.fromstring(
        f"<all>{html.replace('<tr class=strong>', '<tr>').replace('<progress></progress>', '')}</all>"
    )


def test_a_graph_is_drawn_in_layers_with_a_description_in_words(studio):
    found = asyncio.run(search_graph(studio, checked_of(studio, GRAPH.question, "graphs")))
    view = found.view
    assert layers_of(view) == ([[0], [2, 3], [4], [1], [5], [6]], 3)
    rows = ElementTree.fromstring(f"<all>{hop_table(found)}</all>").findall(".//tbody/tr")
    assert [row[2].text for row in rows] == [f"{one.mass:.1%}" for one in found.hops] != []
    hostile = replace(view, symbols=(HOSTILE, *view.symbols[1:]))
    for drawn in (view, hostile):
        for place, frontier in enumerate(drawn.after):
            html = graph_svg(drawn, place)
            assert "<script" not in html
            tree = ElementTree.fromstring(f"<all>{html}</all>")
            nodes = [one.get("class", "") for one in tree.iter("g") if one.get("transform")]
            assert sorted(nodes) == sorted(
                ["node root", "node target", "node distractor apart", "node other apart", "node other apart"]
                + ["node other"] * 2
            )
            lines = [one.get("class") for one in tree.iter("polyline")]
            assert [lines.count(kind) for kind in ("gold", "edge")] == [2, 3]
            assert [one.text for one in tree.iter("text")].count(NOTE) == 1
            shares = [one.text for one in tree.iter("text") if one.get("class") == "value"]
            values = {node.node: node.value for node in frontier.nodes if node.value is not None}
            assert sorted(shares) == sorted(f"{value:.0%}" for value in values.values())


def test_figures_show_computed_values_and_contain_no_scripts(studio):
    checked = checked_of(studio)
    trace = asyncio.run(studio.think(checked, ["1", "2"]))
    shown = thought_figures.decoded_figure(trace).data[0]
    states = [*(view.decoded for view in trace.thoughts), trace.last]
    assert [list(row) for row in shown.z] == [one.probabilities for one in states]
    lens = thought_figures.layers_figure(trace).data[0]
    assert [row[0] for row in lens.z] == [layer.probabilities[0] for layer in reversed(trace.thoughts[0].layers)]
    lines = thought_figures.followed_figure(trace).data
    assert [list(line.y) for line in lines] == [
        [*(one.decoded.chosen[i].log_probability for one in trace.thoughts), trace.last.chosen[i].log_probability]
        for i in range(2)
    ]
    state = replace(trace.last, tokens=[HOSTILE] * 5)
    hostile = replace(trace, last=state, thoughts=(replace(trace.thoughts[0], decoded=state, layers=(state,)),))
    for figure in (thought_figures.decoded_figure(hostile), thought_figures.layers_figure(hostile)):
        assert "<script" not in figure.to_json().replace("\\u003c", "<")
    quoted = replace(trace, last=replace(trace.last, tokens=['"<"'] * 5))
    assert set(thought_figures.decoded_figure(quoted).data[0].text[-1]) == {'"&lt;"'}


@pytest.mark.parametrize(
    ("question", "file", "thoughts", "model", "said"),
    [
        ("", "sums", 2, "thinks", "empty"),
        (" \n", "sums", 2, "thinks", "empty"),
        ("x" * (MAX_CHARACTERS + 1), "sums", 2, "thinks", "6,001 characters"),
        ("\ud800", "sums", 2, "thinks", "lone surrogate"),
        ("1", "sums", 99, "thinks", "expected a whole number from 0 to 8"),
        ("1", "sums", 1.5, "thinks", "expected a whole number"),
        ("1", "sums", 1, "without", "method=no_cot"),
        ("1", "sums", 1, "../etc", "no checkpoint is named"),
    ],
)
def test_a_visitor_asks_within_bounds(studio, question, file, thoughts, model, said):
    with pytest.raises(CoconutError, match=said):
        studio.check_question(model, file, question, thoughts)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 2.5, -1, "2", None])
def test_numbers_are_whole_and_within_bounds(number):
    with pytest.raises(CoconutError, match=r"draws: .*expected a whole number from 0 to 8"):
        whole_number("draws", number, 0, 8)


def test_the_checkpoint_that_is_shown_first_is_there_before_any_visitor(tmp_path, monkeypatch):
    """The newest model may be one without thoughts; pages still open on one that thinks."""
    given = [f"{name}={save_checkpoint(tmp_path / name, name)}" for name in ("no_cot", "coconut")]
    served: list[Service] = []
    monkeypatch.setattr(launch, "app_mounts", lambda *given: {})
    monkeypatch.setattr(launch, "run_server", lambda service, *rest: served.append(service))
    command = ["app", "--max-positions", "64", *(part for one in given for part in ("--runs", one))]
    assert main(command) == 0
    with closing(served[0]) as service:
        assert list(service.models.loaded) == [service.models.checkpoints.first_thinking] == ["coconut"]


def test_a_question_brings_the_others_of_its_file(studio):
    checked = checked_of(studio)
    assert checked.problem == SUMS[0]
    assert checked.answer == "2"
    assert checked.references == tuple(one.question for one in SUMS[1:])
    free = studio.check_question("thinks", "no such file", "1 + 1 =", 2)
    assert free.problem is None
    assert free.references == ()
    with pytest.raises(DataError, match="problem with its graph"):
        asyncio.run(search_graph(studio, free))
    with pytest.raises(CoconutError, match="at most 4"):
        followed_tokens("a,b,c,d,e")


def test_an_overview_holds_the_effects_of_single_changes(studio):
    checked = checked_of(studio)
    found = asyncio.run(intervention_overview(studio, checked))
    what = [one.intervention for one in found]
    assert [(one.kind, one.thought) for one in what] == [
        (kind, thought) for kind in (Kind.PATCH, Kind.ZERO, Kind.MEAN, Kind.NOISE, Kind.RANDOM) for thought in (1, 2)
    ]
    alone = asyncio.run(run_intervention(studio, checked, what[6]))
    assert (alone.effect, found[6].controls) == (found[6].effect, ())
    assert alone.controls
    direct = studio.service.call_now(
        "thinks",
        lambda reasoner: intervene(
            reasoner, checked.question, what[6], references=checked.references, max_new_tokens=NEW_TOKENS
        )[0],
    )
    assert direct == alone


def test_measuring_reports_progress_and_stops_when_the_client_leaves(studio):
    async def all_of_it() -> list[object]:
        return [
            step async for step in measure_data_set(studio, "thinks", "sums", 6, ["sweep", "effects", "probes"], 2, 1)
        ]

    steps = asyncio.run(all_of_it())
    last = steps[-1]
    assert isinstance(last, DataSetResult)
    assert last.num_problems == 6
    assert (len(last.points), {one.thought for one in last.effects}) == (3, {1, 2})
    assert last.probes
    assert all(isinstance(step, (tuple, DataSetResult)) for step in steps)

    async def left_early() -> int:
        seen = 0
        work = studio.watch("thinks", lambda reasoner, progress: (progress(i, 10**6) for i in range(10**7)))
        async for _ in work:
            seen += 1
            break
        await work.aclose()
        # The engine's thread is free again: it answers.
        await asyncio.wait_for(studio.service.call("thinks", lambda reasoner: None), 20)
        return seen

    assert asyncio.run(left_early()) == 1
    with pytest.raises(DataError, match="at least 4"):
        asyncio.run(anext(aiter(measure_data_set(studio, "thinks", "graphs", 12, ["sweep"], 2, 1))))


@pytest.mark.filterwarnings("ignore:Glyph")  # random bytes are not a picture
def test_files_hold_the_numbers_of_the_page(studio):
    checked = checked_of(studio)
    trace = asyncio.run(studio.think(checked))
    thinking = ThinkResult("thinks", trace, tuple(asyncio.run(answers_by_thoughts(studio, checked))))
    changing = InterventionResult(
        "thinks", asyncio.run(run_intervention(studio, checked, Intervention(Kind.NOISE, 1, draws=3)))
    )
    for result in (thinking, changing):
        files = {one.name: one for one in files_of(result, "page")}
        assert json.loads(files["page.json"].content) == json.loads(json.dumps(result.as_dict()))
        pictures = [one for name, one in files.items() if name.endswith(".png")]
        assert pictures
        assert all(one.content.startswith(b"\x89PNG") for one in pictures)
    rows = list(csv.DictReader(io.StringIO(files["page-outcomes.csv"].content.decode(), newline="")))
    report = changing.report
    assert [float(row["change"]) for row in rows if row["arm"] == report.effect.name] == [
        one.change for one in report.effect.outcomes
    ]


def test_files_say_what_they_were_made_from_and_results_do_not_share_a_name(studio, monkeypatch):
    monkeypatch.setattr(export_files, "_drawn", lambda draw: b"")
    checked = checked_of(studio)
    result = ThinkResult("thinks", asyncio.run(studio.think(checked)))
    again, other = replace(result), replace(result, trace=replace(result.trace, text="another"))
    made = made_from(result, studio.checkpoints)
    assert made["checkpoints"]["thinks"]["method"] == "coconut"
    weights = studio.checkpoints["thinks"].folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert made["checkpoints"]["thinks"]["weights"] == {"model.safetensors": digest}
    assert str(weights.parent) not in json.dumps(made)
    names = {
        what: {file.download_name for file in files_of(one, "think", given)}
        for what, one, given in (
            ("first", result, made),
            ("again", again, made),
            ("other text", other, made),
            ("other weights", result, {**made, "checkpoints": {"thinks": {"weights": "another"}}}),
        )
    }
    assert names["first"] == names["again"]
    assert not names["first"] & (names["other text"] | names["other weights"])
    assert not names["other text"] & names["other weights"]
    files = {file.name: file for file in files_of(result, "think", made)}
    assert json.loads(files["think.json"].content)["checkpoints"] == json.loads(json.dumps(made["checkpoints"]))
    assert files["think.json"].download_name == f"think-{files['think-thoughts.csv'].signature}.json"


def test_a_run_brings_its_own_problems_and_a_bad_file_is_refused(tmp_path, studio):
    folder = tmp_path / "run" / "checkpoint_1"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "problems").mkdir()
    problems = [one.as_dict() for one in SUMS]
    (tmp_path / "run" / "problems" / "valid.json").write_text(json.dumps(problems), encoding="utf-8")
    given = tmp_path / "mine.json"
    given.write_text(json.dumps([{"question": "1"}]), encoding="utf-8")
    entry = replace(next(iter(studio.checkpoints)), name="run/checkpoint_1", folder=folder)
    files, file_of = find_files([given], [entry])
    assert {name: one.problems for name, one in files.items()} == {
        "mine": (Problem("1", (), "", has_answer=False),),
        "run: valid": SUMS,
    }
    assert file_of == {"run/checkpoint_1": "run: valid"}
    given.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="mine"):
        find_files([given], [])
