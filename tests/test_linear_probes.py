"""Linear probes find a label that the states contain and nothing else; labels are steps and answers."""

import json
import random

import pytest
import torch
from making_probing import QUESTIONS, make_reasoner

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.parts import in_parts
from coconut_ds.probing import linear
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.labels import labels_of
from coconut_ds.probing.linear import BEFORE_TEXT, linear_probes


@pytest.fixture(scope="module")
def reasoner():
    return make_reasoner("llama")


def test_probes_find_what_is_there_and_nothing_else(monkeypatch):
    """States contain the first step as a direction with little noise, and no information on the answer; the lens is
    computed by hand."""
    reasoner = make_reasoner("gpt2")
    rng = random.Random(5)
    words = ["1", "2", "3"]
    steps, answers = ([rng.choice(words) for _ in range(240)] for _ in range(2))
    problems = [Problem(f"{i}", (step,), answer) for i, (step, answer) in enumerate(zip(steps, answers, strict=True))]
    noise = torch.randn(240, 2, 32, generator=torch.Generator().manual_seed(0))
    rows = reasoner.backbone.model.get_output_embeddings().weight.detach()
    ids = reasoner.backbone.tokenizer.convert_tokens_to_ids(words)
    features = 0.05 * noise
    for index, step in enumerate(steps):
        # In the first state as the head reads it, in the last in other directions.
        features[index, 0] += rows[ids[words.index(step)]] * 3
        features[index, 1, 2 + words.index(step)] += 1.0

    @in_parts
    def given(*arguments):
        yield None
        return features

    monkeypatch.setattr(linear, "_features", given)
    found = {(one.state, one.label): one for one in linear_probes(reasoner, problems[:160], problems[160:])}
    assert set(found) == {(s, label) for s in ("thought 1", BEFORE_TEXT) for label in ("step 1", "answer")}
    for state in ("thought 1", BEFORE_TEXT):
        there, absent = found[state, "step 1"], found[state, "answer"]
        assert (there.num_fit, there.num_scored, there.num_labels) == (160, 80, 3)
        assert there.probe.estimate == 1.0
        # 80 guesses among three: the chance of more than 60 % is below 1e-6.
        assert absent.probe.estimate < 0.6
        # Equal states get equal guesses, so these are not 80 independent guesses.
        assert there.shuffled.estimate < 0.75
        commonest = max(words, key=steps[:160].count)
        assert there.majority == pytest.approx(steps[160:].count(commonest) / 80)
        logits = features[160:, 0 if state == "thought 1" else 1] @ rows.T
        right = [ids[words.index(step)] for step in steps[160:]]
        among = [ids[int(row[ids].argmax())] == token for row, token in zip(logits, right, strict=True)]
        top = [int(row.argmax()) == token for row, token in zip(logits, right, strict=True)]
        assert (there.lens.estimate, there.lens_top.estimate) == (sum(among) / 80, sum(top) / 80)
    assert found["thought 1", "step 1"].lens.estimate > found[BEFORE_TEXT, "step 1"].lens.estimate


def test_states_of_all_problems_go_to_the_probes(reasoner):
    problems = [Problem(question, ("1",), answer) for question, answer in zip(QUESTIONS, "12312", strict=True)]
    features = linear._features(reasoner, problems, None, -1)
    assert features.shape == (5, 4, 32)
    for row, one in zip(features, baselines_of(reasoner, QUESTIONS, max_new_tokens=1), strict=True):
        torch.testing.assert_close(row[:3], one.fed, rtol=1e-4, atol=1e-5)
    scores = linear_probes(reasoner, problems[:3], problems[3:])
    assert [one.label for one in scores] == ["step 1"] * 4 + ["answer"] * 4
    json.dumps([one.as_dict() for one in scores], allow_nan=False)
    with pytest.raises(DataError, match="1 questions are in both sets"):
        linear_probes(reasoner, problems[:3], problems[2:])


def test_labels_are_steps_and_answers():
    plain = [Problem("a", ("1", "2"), "2"), Problem("b", ("3", "4", "5"), "5")]
    assert labels_of(plain) == {"step 1": ["1", "3"], "step 2": ["2", "4"], "answer": ["2", "5"]}
    keys = {"idx_to_symbol": ["Tom", "rompus"], "edges": [[0, 1]], "root": 0, "target": 1, "neg_target": 0}
    graph = [Problem("a", ("Tom is a rompus.",), "Tom is a rompus.", keys)]
    assert labels_of(graph) == {"step 1": ["rompus"]}
