"""Answers after k thoughts, linear probes and mean effects, against single questions, whole passes and hand counts."""

import json
import math
import random

import numpy
import pytest
import torch
from making_probing import QUESTION, REFERENCES, make_reasoner, slow_score

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import build_word_tokenizer, encode_answers, tokenize
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import bootstrap, mean_of, wilson
from coconut_ds.formats import SYMBOLIC, TEXT
from coconut_ds.probing import linear
from coconut_ds.probing.answers import answers_after, sweep
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import prepare
from coconut_ds.probing.effects import measure_effects
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.labels import labels_of
from coconut_ds.probing.linear import BEFORE_TEXT, linear_probes

QUESTIONS = [QUESTION, *REFERENCES]


@pytest.fixture(scope="module")
def reasoner():
    return make_reasoner("llama")


def test_bootstrap_intervals_are_those_of_resampled_means():
    rng = random.Random(0)
    values = [rng.gauss(3.0, 2.0) for _ in range(400)]
    interval = bootstrap(values)
    draws = sorted(sum(rng.choices(values, k=400)) / 400 for _ in range(2000))
    # The ends of 2,000 resampled means vary by about 0.007 between runs.
    assert interval.low == pytest.approx(draws[50], abs=0.03)
    assert interval.high == pytest.approx(draws[1949], abs=0.03)
    half = 1.96 * float(numpy.std(values)) / math.sqrt(400)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap(values) == interval
    shares = mean_of([1.0, 0.0, 1.0, 1.0])
    expected = wilson(3, 4)
    assert (shares.estimate, shares.low, shares.high) == (0.75, expected.low, expected.high)
    assert mean_of([0.5, 1.0]).estimate == 0.75


@pytest.mark.parametrize("form", [TEXT, SYMBOLIC])
def test_cue_and_rest_are_the_answer_as_it_is_trained_on(form):
    tokenizer = build_word_tokenizer(["1 2 3 ### [A] ab c."])
    problems = [Problem("1", (), answer) for answer in ("3", "ab c.", "1 2")]
    cue, tails = encode_answers(tokenizer, [problem.answer for problem in problems], form)
    for problem, tail in zip(tokenize(tokenizer, problems, form), tails, strict=True):
        assert [*problem.cue, *problem.answer] == [*cue, *tail]
    assert tokenizer.decode(cue) == form.answer_start.strip()


def test_answers_after_k_thoughts_are_those_of_the_slow_loop(reasoner):
    known = ["3", "2", "1 + 3"]
    tokenizer = reasoner.backbone.tokenizer
    after = answers_after(reasoner, QUESTIONS[:3], known, max_new_tokens=4)
    cue, tails = encode_answers(tokenizer, known, TEXT)
    for k in range(4):
        plain = reasoner.generate(QUESTIONS[:3], force_text_after=k, max_new_tokens=4)
        for index, case in enumerate(prepare(reasoner, QUESTIONS[:3], k)):
            one, before = after[index][k], baselines_of(reasoner, [QUESTIONS[index]], k, max_new_tokens=4)[0]
            embeds = reasoner.loop.embed(torch.tensor([list(case.prompt.input_ids)])).detach().clone()
            embeds[0, case.prompt.first_thought : case.prompt.first_thought + k] = before.fed
            assert (one.num_thoughts, one.text, one.answer) == (k, plain[index].text, plain[index].answer)
            assert math.log(one.probability) == pytest.approx(slow_score(reasoner, embeds, before.tokens), abs=1e-3)
            forced = torch.cat([embeds, reasoner.loop.embed(torch.tensor([cue])).detach()], dim=1)
            expected = slow_score(reasoner, forced, tails[index])
            assert one.known_log_probability == pytest.approx(expected, abs=1e-3)
            made: list[int] = []
            for _ in range(4):
                logits = reasoner.backbone.model(inputs_embeds=forced, use_cache=False).logits[0, -1].detach().clone()
                logits[list(reasoner.backbone.markers.all())] = float("-inf")
                made.append(int(logits.argmax()))
                if made[-1] == tokenizer.eos_token_id:
                    break
                forced = torch.cat([forced, reasoner.loop.embed(torch.tensor([[made[-1]]]))], dim=1)
            assert one.forced == TEXT.extract(f"### {reasoner.prompter.text(made)}")
    problems = [Problem(q, (), a) for q, a in zip(QUESTIONS, [*known, after[0][3].answer, "1"], strict=False)]
    for k, point in enumerate(sweep(reasoner, problems, max_new_tokens=4)):
        column = [answers_after(reasoner, [p.question], [p.answer], [k], max_new_tokens=4)[0][0] for p in problems]
        assert (point.num_thoughts, point.num_problems) == (k, len(problems))
        assert point.right.estimate == sum(one.is_right for one in column) / len(column)
        assert point.forced_right.estimate == sum(one.is_forced_right for one in column) / len(column)
        mean = sum(one.known_log_probability for one in column) / len(column)
        assert point.known_log_probability.estimate == pytest.approx(mean, abs=1e-3)


def test_a_mean_effect_is_the_mean_of_single_ones(reasoner):
    """Each question on its own through ``intervene``; donors have another answer, or the same for the control."""
    alone = (Intervention(Kind.ZERO, 2), Intervention(Kind.SWAP, 1, other=3), Intervention(Kind.ZERO, 1, later="kept"))
    answers = {one.case.question: one.answer for one in baselines_of(reasoner, QUESTIONS, max_new_tokens=3)}
    known = [answers[question] if index % 2 else "nothing" for index, question in enumerate(QUESTIONS)]
    found = measure_effects(reasoner, QUESTIONS, alone, known, max_new_tokens=3)
    for what, effect in zip(alone, found, strict=True):
        outcomes = [intervene(reasoner, q, what, max_new_tokens=3)[0].effect.outcomes[0] for q in QUESTIONS]
        assert (effect.name, effect.thought, effect.num_problems) == (what.name, what.thought, len(QUESTIONS))
        assert effect.kept.estimate == sum(one.kept for one in outcomes) / len(outcomes)
        mean = sum(one.change for one in outcomes) / len(outcomes)
        assert effect.change.estimate == pytest.approx(mean, abs=1e-3)
        right = sum(one.answer == answer for one, answer in zip(outcomes, known, strict=True)) / len(outcomes)
        assert effect.right.estimate == right
    patched = measure_effects(reasoner, QUESTIONS, [Intervention(Kind.PATCH, 3, draws=9)], max_new_tokens=3)
    for effect, same in zip(patched, (False, True), strict=False):
        kept, changes, became = [], [], []
        for question in QUESTIONS:
            donors = [q for q in QUESTIONS if q != question and (answers[q] == answers[question]) == same]
            made = [
                intervene(reasoner, question, Intervention(Kind.PATCH, 3, donor=donor), max_new_tokens=3)[0].effect
                for donor in donors
            ]
            if made:
                kept.append(sum(one.outcomes[0].kept for one in made) / len(made))
                changes.append(sum(one.outcomes[0].change for one in made) / len(made))
                became.append(sum(one.outcomes[0].answer == one.donor_answers[0] for one in made) / len(made))
        assert effect.num_problems == len(kept)
        assert effect.kept.estimate == pytest.approx(sum(kept) / len(kept))
        assert effect.change.estimate == pytest.approx(sum(changes) / len(changes), abs=1e-3)
        assert (
            effect.became_donors is None
            if same
            else effect.became_donors.estimate == pytest.approx(sum(became) / len(became))
        )


def test_noise_is_drawn_anew_for_each_problem_and_progress_can_end_the_work(reasoner):
    noise = Intervention(Kind.NOISE, 1, draws=3)
    first = measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3)[0]
    assert measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3)[0] == first
    assert measure_effects(reasoner, QUESTIONS[:3], [noise], max_new_tokens=3)[0] != first

    class Ended(Exception):
        pass

    def end(done: int, total: int) -> None:
        assert total == 15
        if done == 4:
            raise Ended

    with pytest.raises(Ended):
        measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3, progress=end)
    with pytest.raises(DataError, match="zero of thought 7: no problem has this many"):
        measure_effects(reasoner, QUESTIONS, [Intervention(Kind.ZERO, 7)], max_new_tokens=3)
    # A single question has no donor.
    assert measure_effects(reasoner, QUESTIONS[:1], [Intervention(Kind.PATCH, 1)], max_new_tokens=3) == []


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
    monkeypatch.setattr(linear, "_features", lambda *arguments: features)
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
