"""The demo's released checkpoint answers as its card says, and a server with it tells of words it does not know."""

import json
import re
from contextlib import closing

import pytest
from making_services import service_of
from released_models import RELEASED, table
from starlette.testclient import TestClient

from coconut_ds import load_reasoner
from coconut_ds.data.encoding import unknown_note, unknown_places, unknown_words
from coconut_ds.data.problem import load_problems
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings.compose import compose_eval_config
from serve import cli
from serve.api.app import create_app
from serve.cli import default_checkpoints
from serve.monitoring.metrics import Metrics

FOLDER = RELEASED / "permutation_product"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
PROBLEMS = load_problems(FOLDER / "problems" / "test.json")


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return load_reasoner(FOLDER)


def test_it_is_as_right_as_its_card_says(reasoner):
    """On the problems beside it. The command in the card measures the others, which takes half a minute."""
    assert len(PROBLEMS) == 200
    for thoughts, _, right in table(FOLDER.name, "Accuracy"):
        count = int(thoughts.split()[0])
        if count in (2, 8):
            answers = reasoner.generate(
                [one.question for one in PROBLEMS], n_thoughts=count, max_new_tokens=16, batch_size=200
            )
            found = sum(answer.answer == one.answer for answer, one in zip(answers, PROBLEMS, strict=True))
            # Kernels of other processors may round differently.
            assert found == pytest.approx(int(right), abs=2)


def test_its_thoughts_are_those_that_its_card_shows(reasoner):
    shown = table(FOLDER.name, "Thoughts")
    answers = reasoner.generate([row[0] for row in shown], max_new_tokens=16, keep_thoughts=True)
    for (question, products, expected, thoughts), answer in zip(shown, answers, strict=True):
        decoded = [thought.tokens[0].strip() or "⏎" for thought in reasoner.decode_thoughts(answer)][::2]
        assert (answer.answer, ", ".join(decoded)) == (expected, thoughts)
        (problem,) = [one for one in PROBLEMS if one.question == question]
        assert (products, expected) == (", ".join(problem.steps), problem.answer)


def test_it_is_small_and_what_the_app_shows_without_any_run(monkeypatch, tmp_path):
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000
    monkeypatch.chdir(tmp_path)
    assert default_checkpoints() == [str(FOLDER.parent)]
    (tmp_path / "outputs").mkdir()
    assert default_checkpoints() == ["outputs", str(FOLDER.parent)]


def test_only_a_place_that_the_user_did_not_name_may_be_skipped(monkeypatch):
    started = []
    monkeypatch.setattr("serve.launch.start", lambda arguments, *others: started.append(arguments.skip_refused))
    for words in (["app"], ["app", "--runs", "outputs"]):
        cli._serve(cli._parser().parse_args(words))
    assert started == [True, False]


def test_it_was_trained_as_the_demo_trains():
    card = json.loads((FOLDER / "coconut.json").read_text())
    config = compose_eval_config([f"checkpoint={FOLDER}", "data=permutation_product"])
    assert (card["method"], card["num_thoughts"], card["provenance"]["global_step"]) == ("coconut", 8, 2500)
    assert (card["provenance"]["data"], card["provenance"]["seed"]) == (config.data.kind, 0)
    assert f"{2500:,} updates" in CARD


def test_unknown_words_are_found_where_they_are(reasoner):
    tokenizer, text = reasoner.backbone.tokenizer, "abc * zebra * cba, zebra ? ="
    places = [text[place.start : place.end] for place in unknown_places(tokenizer, text)]
    assert places == ["zebra", ",", "zebra", "?"]
    assert unknown_words(tokenizer, [text, "abc", "yak"]) == ["zebra", ",", "?", "yak"]
    assert unknown_note(tokenizer, ["abc * cab ="]) is None
    many = " ".join(f"w{number}" for number in range(10))
    assert "'w7' and 2 more; it reads each of them as <|unknown|>" in str(unknown_note(tokenizer, [many]))


def test_a_share_of_unknown_words_above_one_percent_is_a_warning(reasoner, caplog):
    known, strange = "abc * cab =", "abc * zebra ="
    assert reasoner.unknown_share([known] * 99, "f.json") == 0
    assert reasoner.unknown_share([*[known] * 99, strange], "f.json") == pytest.approx(1 / 500)
    assert caplog.text == ""
    assert reasoner.unknown_share([known, strange], "f.json") == pytest.approx(1 / 10)
    assert "10.0% of the tokens of the questions of f.json are unknown" in caplog.text
    assert "'zebra'" in caplog.text


@pytest.fixture(scope="module")
def http():
    with closing(service_of(FOLDER)) as service, TestClient(create_app(service, Metrics())) as client:
        yield client


@pytest.mark.parametrize("route", ["completions", "chat/completions", "thoughts"])
def test_answers_have_warnings_only_about_unknown_words(http, route):
    def asked(question: str, **more) -> dict:
        text = {"messages": [{"role": "user", "content": question}]} if "chat" in route else {"prompt": question}
        text = {"question": question} if route == "thoughts" else text
        done = http.post(f"/v1/{route}", json={"model": "permutation_product", "max_tokens": 8, **text, **more})
        assert done.status_code == 200, done.text
        return done

    warning = "the model's tokenizer does not know 'zebra'; it reads each of them as <|unknown|>"
    assert asked("abc * zebra =").json()["warnings"] == [warning]
    assert "warnings" not in asked("abc * cab =").json()
    if route != "thoughts":
        events = re.findall(r"^data: (\{.*\})$", asked("abc * zebra =", stream=True).text, flags=re.MULTILINE)
        assert [json.loads(event).get("warnings") for event in events] == [[warning], *[None] * (len(events) - 1)]
        assert len(events) > 1
