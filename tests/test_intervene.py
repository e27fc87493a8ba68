"""Interventions on thoughts, against passes over the whole sequence with the vectors put in by hand."""

import json
from dataclasses import replace

import pytest
import torch
from making_probing import QUESTION, REFERENCES, make_reasoner, slow_score

from coconut_ds.errors import DataError
from coconut_ds.methods.layout import Layout
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Case, run_requests, scoring_request, writing_request
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind, Material, change, random_direction
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.reasoner import Reasoner


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reasoner(request) -> Reasoner:
    return make_reasoner(request.param)


CHANGES = [
    (Intervention(Kind.ZERO, 2), lambda own, rest: [own[0], 0 * own[1], None]),
    (Intervention(Kind.MEAN, 1), lambda own, rest: [rest["mean"][0], None, None]),
    (Intervention(Kind.PATCH, 3), lambda own, rest: [own[0], own[1], rest["donor"][2]]),
    (Intervention(Kind.TOKEN, 2, token="3"), lambda own, rest: [own[0], rest["token"], None]),
    (Intervention(Kind.SCALE, 1, strength=-0.5), lambda own, rest: [-0.5 * own[0], None, None]),
    (Intervention(Kind.SWAP, 1, other=3), lambda own, rest: [own[2], None, own[0]]),
    (Intervention(Kind.DROP, 1), lambda own, rest: [own[1], own[2]]),
    (Intervention(Kind.REPEAT, 2), lambda own, rest: [own[0], own[1], own[1], own[2]]),
    (Intervention(Kind.ZERO, 1, later="kept"), lambda own, rest: [0 * own[0], own[1], own[2]]),
    (Intervention(Kind.PATCH, 2, later="kept"), lambda own, rest: [own[0], rest["donor"][1], own[2]]),
]


@pytest.mark.parametrize(("what", "expected"), CHANGES, ids=lambda one: getattr(one, "name", ""))
def test_each_intervention_changes_the_sequence_as_named(reasoner, what, expected):
    """In CHANGES, None means that the thought is computed again by a pass over everything before it."""
    baseline, donor = baselines_of(reasoner, [QUESTION, REFERENCES[1]], max_new_tokens=3)
    token = reasoner.backbone.tokenizer.convert_tokens_to_ids("3")
    rest = {
        "mean": torch.stack([baseline.fed, donor.fed]).mean(0),
        "donor": donor.fed,
        "token": reasoner.loop.embed(torch.tensor([token]))[0].detach(),
    }
    material = Material(rest["mean"], rest["donor"], rest["token"])
    case = change(baseline.case, baseline.fed, what, material)
    vectors = expected(baseline.fed, rest)
    question = list(baseline.case.prompt.input_ids[: baseline.case.prompt.first_thought])
    after = list(baseline.case.prompt.input_ids[baseline.case.prompt.first_thought + 3 :])
    embeds = reasoner.loop.embed(torch.tensor([question])).detach()
    for vector in vectors:
        if vector is None:
            vector = reasoner.backbone.model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1]
        embeds = torch.cat([embeds, vector.detach().expand(1, 1, -1)], dim=1)
    made, scored = run_requests(
        reasoner, [writing_request(case, reasoner, 3), scoring_request(case, reasoner, baseline.tokens)]
    )
    torch.testing.assert_close(made.thoughts, embeds[0, len(question) :], rtol=1e-4, atol=1e-5)
    whole = torch.cat([embeds, reasoner.loop.embed(torch.tensor([after])).detach()], dim=1)
    assert sum(scored.log_probabilities) == pytest.approx(slow_score(reasoner, whole, baseline.tokens), abs=1e-3)
    report = intervene(
        reasoner,
        QUESTION,
        replace(what, donor=REFERENCES[1]) if what.kind is Kind.PATCH else what,
        references=[] if what.kind is not Kind.MEAN else [REFERENCES[1]],
        max_new_tokens=3,
    )[0]
    if what.kind is not Kind.MEAN:
        outcome = report.effect.outcomes[0]
        assert outcome.log_probability == pytest.approx(sum(scored.log_probabilities), abs=1e-4)
        assert outcome.change == pytest.approx(outcome.log_probability - report.log_probability)
        assert outcome.text == reasoner.prompter.text(made.tokens)


def test_noise_has_the_requested_length_and_repeats_itself():
    own = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    case = Case("q", Layout([1, 9, 9, 9, 2], [-100] * 5, 1, 3))
    for kind, base in ((Kind.NOISE, own[1]), (Kind.RANDOM, torch.zeros(32))):
        what = Intervention(kind, 2, strength=2.0 if kind is Kind.NOISE else 1.0)
        vectors = [
            change(case, own, what, draw=d, salt=s).given[1] for d, s in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
        ]
        assert torch.equal(vectors[0], vectors[1])
        assert not torch.equal(vectors[0], vectors[2])
        assert not torch.equal(vectors[0], vectors[3])
        for vector in vectors:
            assert float((vector - base).norm()) == pytest.approx(float(own[1].norm()) * what.strength, rel=1e-5)
    # The mean of 4,000 unit vectors in 8 dimensions: each coordinate has sd 1 / sqrt(8 · 4000) = 0.0056.
    directions = torch.stack([random_direction(str(i), 8) for i in range(4000)])
    assert directions.mean(0).abs().max() < 0.03


def test_pauses_are_thoughts_that_are_given():
    """The text is what the method writes without probing; states are those of a plain pass over the pause tokens."""
    reasoner = make_reasoner("llama", "pause_as_thought")
    markers = reasoner.backbone.markers
    known = baselines_of(reasoner, [QUESTION, *REFERENCES], max_new_tokens=4)
    plain = reasoner.generate([QUESTION, *REFERENCES], max_new_tokens=4)
    assert [list(one.tokens) for one in known] == [one.completion.tokens for one in plain]
    row = reasoner.loop.embed(torch.tensor([markers.pause]))[0].detach()
    for one in known:
        assert one.case.num_latents == 3
        assert torch.equal(one.fed, row.expand(3, -1))
    trace = trace_thoughts(reasoner, QUESTION, max_new_tokens=4)[0]
    ids = [*reasoner.prompter.encode([QUESTION])[0], markers.start, *[markers.pause] * 3, markers.end]
    last = reasoner.backbone.model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].detach()
    first = ids.index(markers.pause)
    assert trace.pauses
    norms = last[first - 1 : first + 2].norm(dim=-1).tolist()
    assert [view.norm for view in trace.thoughts] == pytest.approx(norms, rel=1e-4)
    reports = intervene(
        reasoner,
        QUESTION,
        [Intervention(Kind.SWAP, 1, other=2), Intervention(Kind.PATCH, 2, donor="3"), Intervention(Kind.ZERO, 1)],
        max_new_tokens=4,
    )
    assert [abs(one.effect.mean_change) < 1e-4 for one in reports] == [True, True, False]


def test_thoughts_that_come_all_at_once_are_made_so_here_too():
    plain = make_reasoner("llama")
    reasoner = replace(plain, card=replace(plain.card, iterations=2))
    known = baselines_of(reasoner, [QUESTION, *REFERENCES], max_new_tokens=4)
    made = reasoner.generate([QUESTION, *REFERENCES], max_new_tokens=4, keep_thoughts=True)
    for one, other in zip(known, made, strict=True):
        assert list(one.tokens) == other.completion.tokens
        torch.testing.assert_close(one.fed, other.thoughts, rtol=1e-4, atol=1e-5)
    # With one pass per thought, fixing a thought at its last value changes nothing.
    often = replace(plain, card=replace(plain.card, iterations=3))
    changes = [Intervention(Kind.SCALE, 2), Intervention(Kind.ZERO, 1)]
    nothing, zero = intervene(often, QUESTION, changes, max_new_tokens=4)
    assert abs(nothing.effect.mean_change) < 1e-4 < abs(zero.effect.mean_change)
    assert "token before" not in {arm.name for arm in zero.controls}


def test_what_is_written_before_thinking_belongs_to_the_prompt():
    """A model that starts thinking by itself: its prompt ends with the start marker that it wrote."""
    reasoner = make_reasoner("llama", "coconut_reversed")
    markers, model = reasoner.backbone.markers, reasoner.backbone.model
    written = reasoner.generate("3", max_new_tokens=1)[0].completion.tokens
    with torch.no_grad():
        # The start marker becomes the likeliest second token, so that the model starts thinking after one token.
        alone = reasoner.generate("3", max_new_tokens=3, n_thoughts=0)[0].completion.tokens
        head = model.get_output_embeddings().weight
        head[markers.start] = 2 * head[alone[1]]
    whole = reasoner.generate("3", max_new_tokens=8, keep_thoughts=True)[0].completion
    assert markers.start in whole.tokens
    (one,) = baselines_of(reasoner, ["3"], max_new_tokens=8)
    place = whole.tokens.index(markers.start)
    assert list(one.case.written) == whole.tokens[:place]
    assert one.case.prompt.first_thought == len(reasoner.prompter.encode(["3"])[0]) + place + 1
    torch.testing.assert_close(one.fed, whole.thoughts, rtol=1e-4, atol=1e-5)
    after = whole.tokens[place + 1 :]
    assert list(one.tokens)[: len(after)] == after
    assert len(written) == 1


def test_reports_hold_their_controls():
    reasoner = make_reasoner()
    answers = {
        one.case.question: one.answer for one in baselines_of(reasoner, [QUESTION, *REFERENCES], max_new_tokens=3)
    }
    what = Intervention(Kind.PATCH, 2, draws=5)
    twin = [question for question in REFERENCES if answers[question] == answers[QUESTION]]
    others = [question for question in REFERENCES if answers[question] != answers[QUESTION]]
    report = intervene(reasoner, QUESTION, what, references=REFERENCES, max_new_tokens=3)[0]
    assert list(report.effect.donors) == others
    assert report.effect.donor_answers == tuple(answers[one] for one in others)
    names = {arm.name: arm for arm in report.controls}
    assert set(names) == {"thought 1", "thought 3", *(["same answer"] if twin else [])}
    noise = intervene(
        reasoner, QUESTION, Intervention(Kind.NOISE, 1, draws=6), references=REFERENCES, max_new_tokens=3
    )[0]
    assert len(noise.effect.outcomes) == 6
    assert len({one.log_probability for one in noise.effect.outcomes}) == 6
    assert {"thought 2", "thought 3", "token before"} <= {arm.name for arm in noise.controls}
    nothing = intervene(reasoner, QUESTION, Intervention(Kind.SCALE, 2), max_new_tokens=3)[0]
    assert all(arm.kept == 1 and abs(arm.mean_change) < 1e-5 for arm in (nothing.effect, *nothing.controls))
    json.dumps(noise.as_dict(), allow_nan=False)


def test_wrong_changes_say_what_is_possible():
    reasoner = make_reasoner()
    for what, message in (
        (Intervention(Kind.ZERO, 4), "thought=4: there are 3; expected 1 to 3"),
        (Intervention(Kind.SWAP, 1, other=9), "thought=9: there are 3"),
        (Intervention(Kind.MEAN, 1), "kind=mean: needs reference questions"),
        (Intervention(Kind.PATCH, 1), "kind=patch: needs another question"),
        (Intervention(Kind.TOKEN, 1, token="1 + 2"), "'1 . 2' is 3 tokens"),
        (Intervention(Kind.TOKEN, 1, token="nope"), "'nope' is unknown to the tokenizer"),
    ):
        with pytest.raises(DataError, match=message):
            intervene(reasoner, QUESTION, what, max_new_tokens=3)
    with pytest.raises(DataError, match="did not think"):
        intervene(reasoner, QUESTION, Intervention(Kind.ZERO, 1), n_thoughts=0)
    for wrong in ({"thought": 0}, {"draws": 0}, {"later": "never"}, {"kind": "melt"}, {"kind": Kind.SWAP}):
        with pytest.raises(DataError, match=next(iter(wrong)) if "kind" not in wrong else "kind="):
            Intervention(**{"kind": Kind.ZERO, **wrong})
