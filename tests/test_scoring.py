"""Scoring conventions: the verdicts of the public code that they are named after, and where they are named.

The files in ``fixtures/scoring`` hold pairs of a text and a reference answer with the verdicts of the public functions,
recorded by calling them: Coconut's ``run.py`` (07a5573), SVP's ``svp/metrics.py`` and ``svp/data.py`` (a5223c7 and
366d61e), LatentTTS's ``src/paths.py`` (dada2c7), CODI's ``test.py`` (4fd88d4) and math-verify 0.9.0. null: the public
code has no verdict, because it skips the answer or ends with an error.
"""

import json
import sys
import threading

import pytest
import yaml
from imports import ROOT

from coconut_ds.data.checks import is_scored, warnings_about
from coconut_ds.data.problem import Problem
from coconut_ds.errors import ConfigError, ModelError
from coconut_ds.formats import TEXT
from coconut_ds.scoring import EXACT, SCORINGS, scoring_of
from coconut_ds.settings import DataConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.rewards import Reward


def recorded(name: str) -> tuple[list[str], list[list]]:
    """The heads of the columns, and the rows."""
    head, *rows = json.loads((ROOT / "tests" / "fixtures" / "scoring" / f"{name}.json").read_text(encoding="utf-8"))
    return head, rows


@pytest.mark.parametrize("name", ["exact", "number", "last_number"])
def test_numbers_are_judged_as_the_public_code_judges_them(name):
    """Except solutions of GSM8K as reference answers of ``exact``: their answer is read after ``#``, as in texts."""
    head, rows = recorded("numbers")
    column = next(place for place, title in enumerate(head) if title.startswith(f"{name}: "))
    rows = [row for row in rows if name != "exact" or "#" not in row[1]]
    assert len(rows) >= 60
    assert len({bool(row[column]) for row in rows}) == 2
    wrong = [(t, a) for t, a, *rest in rows if SCORINGS[name].is_correct(t, a) != bool(rest[column - 2])]
    assert wrong == []
    unread = [a for _, a, *rest in rows if rest[column - 2] is None]
    assert all(SCORINGS[name].gold(answer) == "" for answer in unread)


def test_number_differs_from_latent_tts_only_within_its_tolerance():
    """Both read the same number in a text; they disagree where it is not exactly the answer but rounds to it."""
    head, rows = recorded("numbers")
    svp, latent = (
        next(i for i, title in enumerate(head) if title.endswith(f": {name}")) for name in ("SVP", "LatentTTS")
    )
    other = [(text, answer) for text, answer, *rest in rows if rest[svp - 2] != rest[latent - 2]]
    assert 4 <= len(other) <= 10
    for text, answer in other:
        assert float(SCORINGS["number"].read(text)) != float(answer)
        assert float(SCORINGS["number"].read(text)) == pytest.approx(float(answer), abs=0.05)


@pytest.mark.parametrize("announced", ["The answer is: ", "### "])
def test_choices_are_judged_as_the_public_code_judges_them(announced):
    """With the words of CODI's models, and with the mark of our format in their place."""
    _, rows = recorded("choice")
    assert len(rows) >= 60
    own = [(text.replace("The answer is: ", announced), answer, bool(verdict)) for text, answer, verdict in rows]
    assert [row for row in own if SCORINGS["choice"].is_correct(*row[:2]) != row[2]] == []
    assert len({verdict for *_, verdict in own}) == 2


@pytest.mark.slow
def test_expressions_are_judged_by_math_verify():
    """After ``###`` without delimiters; and in a sentence, in another thread, which has no alarms."""
    pytest.importorskip("math_verify")
    _, rows = recorded("math_verify")
    scoring = scoring_of("math_verify")
    assert len(rows) >= 60
    assert [row for row in rows if scoring.is_correct(f"a step\n### {row[0]}", row[1]) != row[2]] == []
    some = rows[::8]
    made = []
    thread = threading.Thread(
        target=lambda: made.extend(scoring.is_correct(f"So it is ${one}$.", answer) for one, answer, _ in some)
    )
    thread.start()
    thread.join()
    assert made == [verdict for *_, verdict in some]


def test_what_is_read_before_the_answer_does_not_make_a_choice():
    """CODI's code would take the digits in the steps for the answer; its models write none."""
    choice = SCORINGS["choice"]
    text = "In 1969, 2 people walked on it. A fact.\n### D"
    assert choice.is_correct(text, "D")
    assert choice.read(text, "D") == choice.read(text) == "D"
    assert choice.is_correct("It was in 1969. True so far.\n### False", "False")
    assert choice.read("### False") == "False"


@pytest.mark.parametrize(
    ("name", "answer"), [("number", "five"), ("number", "nan"), ("last_number", "$5"), ("choice", "F"), ("choice", "")]
)
def test_no_text_is_right_where_the_convention_cannot_read_the_reference_answer(name, answer):
    """CODI counts it as right if it can read neither of the two."""
    scoring, problem = SCORINGS[name], Problem("q", (), answer)
    assert not is_scored(problem, TEXT, scoring)
    assert not any(scoring.is_correct(text, answer) for text in ("", "nothing", "### five", "### nan", "### C", "inf"))
    lines = warnings_about([problem], TEXT, "f.json", scoring)
    assert ("scoring reads nothing" in "".join(lines)) == bool(answer)


def test_the_benchmarks_name_their_conventions_and_a_wrong_one_is_refused():
    def of(name: str) -> str:
        values = yaml.safe_load((ROOT / "config" / "data" / f"{name}.yaml").read_text())
        return DataConfig(**values).scoring

    names = ("gsm_eval", "prosqa_eval", "svamp", "asdiv_a", "gsm_plus_svp", "commonsenseqa", "strategyqa", "math500")
    assert [of(name) for name in names] == ["exact", "exact", *["number"] * 3, "choice", "choice", "math_verify"]
    assert compose_config(["data=gsm_file"]).data.convention == scoring_of("exact", "numbers") != EXACT
    with pytest.raises(ConfigError, match=r"unknown scoring convention.*last_number"):
        compose_config(["scoring=lastnumber"])
    with pytest.raises(ConfigError, match="symbolic cannot have scoring=number: its problems are symbols"):
        compose_config(["data=prosqa_symbolic", "scoring=number"])
    assert all(one.source for one in SCORINGS.values())


def test_a_reward_uses_the_convention_of_the_data():
    config = compose_config(["objective=grpo", "data=gsm_file", "scoring=last_number"])
    assert Reward(config)(Problem("q", (), "2"), "it is 1/2") == 1.0
    assert Reward(compose_config(["objective=grpo", "data=gsm_file"]))(Problem("q", (), "2"), "it is 1/2") == 0.0


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ModelError, match=r"math_verify is missing; install it with: pip install -e .*\[math\]"):
        scoring_of("math_verify")
