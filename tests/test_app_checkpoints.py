"""Which checkpoint the app begins with, what it says about checkpoints, and which one it proposes to compare with."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from making_app import SUMS
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from coconut_ds.data.problem import Problem
from coconut_ds.formats import TEXT
from coconut_ds.model.card import ModelCard
from coconut_ds.scoring import EXACT, scoring_of
from serve.api.pages import add_pages
from serve.app.checkpoint_list import choices, facts, partner_of
from serve.app.problems import ProblemFile, find_files
from serve.app.studio import CheckedQuestion, Studio
from serve.checkpoints.finding import ServedCheckpoint, Standing
from serve.checkpoints.offered import Checkpoints

BEST = Standing(is_best=True, is_finished=True)


def served(
    name: str, method: str = "coconut", accuracy: float | None = None, standing: Standing | None = BEST, **origin: str
) -> ServedCheckpoint:
    latents = {"num_thoughts": 2 if method == "coconut" else 0, "num_pauses": 2 if method.startswith("pause") else 0}
    provenance = {**origin, **({} if accuracy is None else {"validation_accuracy": accuracy})}
    card = ModelCard(method, 1, c_thought=2, max_latent_stage=1, marker_ids={}, provenance=provenance, **latents)
    created = int(time.time()) - 7300
    return ServedCheckpoint(name, Path(name), Path(name), card, created, standing=standing)


@pytest.mark.parametrize(
    ("checkpoints", "first"),
    [
        ([served("a", "no_cot", 1.0), served("b", accuracy=0.2)], "b"),
        ([served("a", accuracy=0.9, standing=replace(BEST, is_best=False)), served("b", accuracy=0.8)], "b"),
        ([served("a", accuracy=0.9, standing=replace(BEST, is_finished=False)), served("b", accuracy=0.8)], "b"),
        ([served("a", accuracy=0.8), served("b", accuracy=0.9), served("c", accuracy=0.9)], "b"),
        ([served("a", "no_cot"), served("b", "cot")], "a"),
        ([served("a", standing=Standing(False, False)), served("b", standing=Standing(True, False))], "b"),
        ([served("a", accuracy=1.0, standing=None), served("b", standing=Standing(False, False))], "b"),
        ([served("a", accuracy=0.8, standing=None), served("b", accuracy=0.9, standing=None)], "a"),
    ],
)
def test_the_app_begins_with_the_best_complete_checkpoint_that_thinks(checkpoints, first):
    assert Checkpoints(checkpoints).first_thinking == first


def test_the_standing_of_a_checkpoint_is_that_in_its_run():
    attempt = SimpleNamespace(best=SimpleNamespace(path=Path("run/checkpoint_3")), status="completed")
    assert Standing.of(attempt, Path("run/checkpoint_3")) == Standing(True, True)
    assert Standing.of(attempt, Path("run/checkpoint_4")) == Standing(False, True)
    assert Standing.of(SimpleNamespace(best=None, status="running"), Path("run/checkpoint_3")) == Standing(False, False)


def test_lists_name_method_stage_accuracy_and_age_and_mark_the_best():
    best = served("r/checkpoint_3", accuracy=0.937, run="r")
    other = served("r/checkpoint_4", "pause_as_thought", standing=Standing(False, False), run="r")
    assert choices([best, other]) == [
        ("★ r/checkpoint_3 · coconut stage 1, 93.7%, 2 h old", "r/checkpoint_3"),
        ("r/checkpoint_4 · pause_as_thought stage 1, 2 h old", "r/checkpoint_4"),
    ]
    assert facts(best) == (
        "r/checkpoint_3: method coconut, stage 1 of its curriculum, trained with 2 thoughts, 93.7% of the validation "
        "problems right, saved 2 hours ago, best checkpoint of a complete run."
    )
    assert facts(other).endswith("2 hours ago, a checkpoint other than the best of a run that is not complete.")
    model = served("m", standing=None, run="r")
    assert choices([model]) == [("m · coconut stage 1, 2 h old", "m")]
    assert facts(model).endswith("trained with 2 thoughts, saved 2 hours ago.")


def test_the_partner_has_the_same_data_and_another_method():
    own = served("own", data="sums")
    others = [
        served("other data", "pause_as_thought", data="graphs"),
        served("same method", data="sums"),
        served("no thoughts", "no_thoughts", data="sums"),
        served("pauses", "pause_as_thought", data="sums", standing=replace(BEST, is_best=False)),
        served("best pauses", "pause_as_thought", data="sums"),
    ]
    for partner in ("best pauses", "pauses", "no thoughts", "same method", "other data"):
        assert partner_of("own", [*others, own], {}, {}) == partner
        others = [one for one in others if one.name != partner]
    assert partner_of("own", [own], {}, {}) == "own"
    # Without a name in the card, the problems of the runs tell which data are the same.
    files = {name: ProblemFile(name, SUMS if name != "c" else SUMS[:2]) for name in "abc"}
    runs = [served("a"), served("c", "no_cot"), served("b", "no_cot")]
    assert partner_of("a", runs, files, {name: name for name in "abc"}) == "b"
    # "file" in the card does not say which file.
    files_of_runs = [served("a", data="file"), served("c", "pause", data="file"), served("b", "no_cot", data="file")]
    assert partner_of("a", files_of_runs, files, {name: name for name in "abc"}) == "b"


def test_the_address_that_is_printed_leads_to_the_app():
    """Relative, so that it is right under a prefix that the server does not know."""
    app = FastAPI()
    app.add_route("/app/", lambda request: PlainTextResponse("the app"))
    add_pages(app, SimpleNamespace(), ["/app"], home="/app")
    with TestClient(app) as http:
        assert http.get("/", follow_redirects=False).headers["location"] == "app/"
        assert http.get("/").text == "the app"


@pytest.mark.parametrize(
    ("place", "name", "numbers"),
    [
        ("svamp.json", "number", False),
        ("mine.json", "exact", False),
        ("run/problems/test.json", "last_number", False),
        ("other/problems/test.json", "exact", True),
        ("broken/problems/test.json", "exact", False),
    ],
)
def test_answers_are_judged_by_the_convention_of_their_data_set(place, name, numbers, tmp_path):
    """Known from the run that has stored the problems, or from the name of the file."""
    for run, data in (("run", "{scoring: last_number}"), ("other", "{answers: numbers}"), ("broken", "[")):
        (tmp_path / run / "problems").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text(f"data: {data}\n")
    path = tmp_path / place
    path.write_text(json.dumps([one.as_dict() for one in SUMS]))
    (file,) = find_files([path], [])[0].values()
    assert file.scoring == scoring_of(name, "numbers" if numbers else "text")
    right = file.scoring.is_correct("so it is 2.0 cats", "2") or file.scoring.is_correct("### 2.0", "2")
    assert right is (name != "exact" or numbers)


def test_the_app_asks_the_convention_of_the_question(monkeypatch):
    checked = CheckedQuestion("any", "2 cats?", 0, Problem("2 cats?", (), "2"), (), scoring_of("last_number"))
    studio = Studio(None, {})
    monkeypatch.setattr(Studio, "card", lambda self, model: SimpleNamespace(text_format=TEXT))
    assert studio.is_right(checked, "so it is 2.0 cats")
    assert not studio.is_right(replace(checked, scoring=EXACT), "so it is 2.0 cats")
