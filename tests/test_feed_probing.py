"""Probing a model whose thoughts go through a feed: thoughts are decoded, and what is fed for them is changed."""

import pytest
import torch
from making_feeds import make_feed
from making_probing import QUESTION, QUESTIONS, make_reasoner, sequence, slow_score
from slow_loop import slow_inputs

from coconut_ds.probing.baselines import Trial, baselines_of, outcomes_of
from coconut_ds.probing.cases import run_requests, writing_request
from coconut_ds.probing.interventions import Intervention, Kind, Material, change
from coconut_ds.probing.states import attentions_of, layer_states
from coconut_ds.probing.trace import trace_of, trace_thoughts
from coconut_ds.reasoner import Reasoner


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    made = make_reasoner()
    made.backbone.feed = make_feed()
    return made


def test_states_of_layers_are_those_of_the_sequence_with_what_was_fed(reasoner):
    known = baselines_of(reasoner, QUESTIONS, max_new_tokens=2)
    cases, fed = [one.case for one in known], [one.fed for one in known]
    weights = attentions_of(reasoner, cases, fed)
    for one, states, own in zip(known, layer_states(reasoner, cases, fed), weights, strict=True):
        inputs = slow_inputs(reasoner.backbone.model, one.case.prompt, None, reasoner.backbone.feed).detach()
        last = reasoner.backbone.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0].detach()
        first = one.case.prompt.first_thought
        torch.testing.assert_close(one.fed, inputs[0, first : first + 3], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states.thoughts, last[first - 1 : first + 2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states.inputs, states.fed, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states.last, last[-1], rtol=1e-4, atol=1e-4)
        assert own.shape[1:] == (4, len(one.case.prompt))


def test_a_trace_decodes_the_thoughts_and_measures_what_is_fed(reasoner):
    """Of a question, and of an answer that has been generated before, as the server traces them."""
    trace = trace_thoughts(reasoner, QUESTION, max_new_tokens=4)[0]
    answer = reasoner.generate(QUESTION, max_new_tokens=4, keep_thoughts=True)[0]
    assert trace_of(reasoner, QUESTION, answer.completion, 3) == trace
    for view, thought, fed, decoded in zip(
        trace.thoughts, answer.thoughts, answer.completion.fed, reasoner.decode_thoughts(answer), strict=True
    ):
        scores = reasoner.loop.head(thought).softmax(-1).detach()
        assert view.decoded.probabilities == pytest.approx(scores.topk(5).values.tolist(), rel=1e-3)
        assert view.decoded.tokens == decoded.tokens
        table = reasoner.backbone.model.get_input_embeddings().weight.detach()
        cosines = (table @ fed) / table.norm(dim=1) / fed.norm()
        assert (view.norm, view.nearest[0].cosine) == pytest.approx((float(fed.norm()), float(cosines.max())), rel=1e-4)


@pytest.mark.parametrize("kind", [Kind.SCALE, Kind.ZERO, Kind.PATCH, Kind.TOKEN, Kind.SWAP, Kind.REPEAT])
@pytest.mark.parametrize("later", ["kept", "recomputed"])
def test_interventions_change_what_is_fed(reasoner, kind, later):
    """The text is as likely as after the sequence with the changed vectors; scaling by 1 changes nothing."""
    own, donor = baselines_of(reasoner, QUESTIONS[:2], max_new_tokens=3)
    token = reasoner.loop.embed(torch.tensor(2)).detach()
    what = Intervention(kind, 2, other=3, token="3", later=later)
    case = change(own.case, own.fed, what, Material(donor=donor.fed, token=token))
    vectors = torch.stack([*own.fed, own.fed[2]][: case.num_latents])
    for index, vector in case.given.items():
        vectors[index] = vector
    if later == "recomputed" and case.num_latents == 3 and 2 not in case.given:
        inputs = sequence(reasoner, case, vectors)[:, : case.prompt.first_thought + 2]
        state = reasoner.backbone.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -1]
        vectors[2] = reasoner.backbone.feed(state).detach()
    made = run_requests(reasoner, [writing_request(case, reasoner, 3)])[0]
    torch.testing.assert_close(made.fed, vectors, rtol=1e-4, atol=1e-4)
    outcome = outcomes_of(reasoner, [Trial(own, case)], 3)[0]
    slow = slow_score(reasoner, sequence(reasoner, case, vectors), list(own.tokens))
    assert outcome.log_probability == pytest.approx(slow, abs=1e-3)
    assert (abs(outcome.change) < 1e-4) == (kind is Kind.SCALE)
