"""Traces and interventions of single questions, against passes of the whole sequence with vectors put in by hand."""

import json
from dataclasses import replace

import pytest
import torch
from slow_loop import slow_embeddings
from test_checkpoint import TEXTS, make_card, settings_of

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.methods.layout import Layout
from coconut_ds.model.backbone import build_backbone
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Case, prepare, run_requests, scoring_request, writing_request
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind, Material, change, random_direction
from coconut_ds.probing.states import attentions_of, final_norm, layer_states
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.reasoner import Reasoner

QUESTION = "1 + 2"
REFERENCES = ["3", "2 + 2 =", "1 + 3 =", "2 + 1 + 1"]


def make_reasoner(family: str = "gpt2", method: str = "coconut", seed: int = 0) -> Reasoner:
    torch.manual_seed(seed)
    pauses = METHODS[method].pauses
    backbone = build_backbone(settings_of(family), build_word_tokenizer(TEXTS), pauses)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.dim() > 1:
                # Large enough that every path matters, and that answers differ.
                parameter.normal_(0.0, 0.7, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    latents = {"num_thoughts": 0 if pauses else 3, "num_pauses": 3 if pauses else 0}
    return Reasoner(backbone, replace(make_card(backbone), method=method, c_thought=1, **latents))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reasoner(request) -> Reasoner:
    return make_reasoner(request.param)


def sequence(reasoner: Reasoner, case: Case, vectors: torch.Tensor) -> torch.Tensor:
    """[1, T, D] inputs of a prompt with its thoughts put in."""
    embeds = reasoner.loop.embed(torch.tensor([list(case.prompt.input_ids)])).detach().clone()
    first = case.prompt.first_thought
    embeds[0, first : first + len(vectors)] = vectors
    return embeds


def slow_score(reasoner: Reasoner, embeds: torch.Tensor, tokens: list[int]) -> float:
    """Log probability of tokens after a sequence, markers left out of each distribution."""
    model, total = reasoner.backbone.model, 0.0
    for token in tokens:
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].detach().clone()
        logits[list(reasoner.backbone.markers.all())] = float("-inf")
        total += float(logits.log_softmax(-1)[token])
        embeds = torch.cat([embeds, reasoner.loop.embed(torch.tensor([[token]]))], dim=1)
    return total


def test_a_trace_holds_what_the_layers_hold(reasoner):
    """Each layer's state by a hook on its block, the final norm applied by hand, once; then softmax of the head."""
    trace = trace_thoughts(reasoner, QUESTION, top_k=4, tokens=["3", "="], max_new_tokens=4)[0]
    case = prepare(reasoner, [QUESTION])[0]
    embeds = slow_embeddings(reasoner.backbone.model, case.prompt)
    base, seen = reasoner.backbone.model.base_model, []
    blocks, norm = (base.h, base.ln_f) if hasattr(base, "h") else (base.layers, base.norm)
    assert final_norm(reasoner.loop) is norm
    hooks = [b.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach())) for b in blocks]
    hooks.append(norm.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach())))
    last = base(inputs_embeds=embeds, use_cache=False).last_hidden_state.detach()
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(norm(seen[-1]), last)
    first, tokenizer = case.prompt.first_thought, reasoner.backbone.tokenizer
    ids = tokenizer.convert_tokens_to_ids(["3", "="])
    for number, view in enumerate(trace.thoughts, start=1):
        assert (view.number, len(view.layers)) == (number, len(blocks) + 1)
        assert view.layers[-1] == view.decoded
        for layer, decoded in zip(seen, view.layers, strict=True):
            scores = reasoner.loop.head(norm(layer[0, first - 2 + number])).log_softmax(-1).detach()
            assert decoded.probabilities == pytest.approx(scores.exp().topk(4).values.tolist(), rel=1e-3)
            assert decoded.tokens == [tokenizer.decode([i]) for i in scores.topk(4).indices.tolist()]
            assert decoded.entropy == pytest.approx(-float((scores.exp() * scores).sum()), rel=1e-3)
            assert [c.log_probability for c in decoded.chosen] == pytest.approx(scores[ids].tolist(), rel=1e-3)
            assert [c.rank for c in decoded.chosen] == [int((scores > scores[i]).sum()) + 1 for i in ids]
        thought, before = last[0, first - 2 + number], last[0, first - 3 + number]
        assert view.norm == pytest.approx(float(thought.norm()), rel=1e-4)
        if number > 1:
            cosine = float(thought @ before / thought.norm() / before.norm())
            assert view.cosine_to_previous == pytest.approx(cosine, abs=1e-4)
        table = reasoner.backbone.model.get_input_embeddings().weight.detach()
        cosines = (table @ thought) / table.norm(dim=1) / thought.norm()
        assert view.nearest[0].token == tokenizer.decode([int(cosines.argmax())])
        assert view.nearest[0].cosine == pytest.approx(float(cosines.max()), abs=1e-4)
    assert trace.text == reasoner.generate(QUESTION, max_new_tokens=4)[0].text
    json.dumps(trace.as_dict(), allow_nan=False)


def test_the_state_before_the_text_and_attention_are_those_of_the_whole_pass(reasoner):
    questions = [QUESTION, *REFERENCES]
    known = baselines_of(reasoner, questions, max_new_tokens=2)
    cases, fed = [one.case for one in known], [one.fed for one in known]
    model = reasoner.backbone.model
    for case, states, weights in zip(
        cases, layer_states(reasoner, cases, fed), attentions_of(reasoner, cases, fed), strict=True
    ):
        embeds = sequence(reasoner, case, states.fed)
        last = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0].detach()
        first = case.prompt.first_thought
        torch.testing.assert_close(states.thoughts, last[first - 1 : first + 2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states.thoughts, states.fed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states.last, last[-1], rtol=1e-4, atol=1e-5)
        heads = model.config.num_attention_heads
        assert weights.shape == (model.config.num_hidden_layers, 4, len(case.prompt))
        torch.testing.assert_close(weights.sum(-1), torch.full(weights.shape[:2], float(heads)))
        later = (
            torch.arange(len(case.prompt)) > torch.tensor([*range(first - 1, first + 2), len(case.prompt) - 1])[:, None]
        )
        assert not weights[:, later].any()


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
def test_a_change_does_to_the_sequence_what_its_name_says(reasoner, what, expected):
    """None: recomputed by a pass over all that stands before it."""
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


def test_noise_has_the_asked_length_and_repeats_itself():
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
    """What is written is what the method writes by itself; states are those of the plain pass over pause tokens."""
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
    # With as many passes as thoughts, holding one at its last value changes nothing.
    often = replace(plain, card=replace(plain.card, iterations=3))
    changes = [Intervention(Kind.SCALE, 2), Intervention(Kind.ZERO, 1)]
    nothing, zero = intervene(often, QUESTION, changes, max_new_tokens=4)
    assert abs(nothing.effect.mean_change) < 1e-4 < abs(zero.effect.mean_change)
    assert "token before" not in {arm.name for arm in zero.controls}


def test_what_is_written_before_thinking_belongs_to_the_prompt():
    """A model that begins by itself: its prompt ends with the start marker that it wrote."""
    reasoner = make_reasoner("llama", "coconut_reversed")
    markers, model = reasoner.backbone.markers, reasoner.backbone.model
    written = reasoner.generate("3", max_new_tokens=1)[0].completion.tokens
    with torch.no_grad():
        # The start marker takes the place of the likeliest second token, so that it thinks after one.
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
