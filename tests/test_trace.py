"""Traces of thoughts, against the layers of a pass over the whole sequence."""

import json
from dataclasses import replace

import pytest
import torch
from making_probing import QUESTION, REFERENCES, make_reasoner, sequence
from slow_loop import slow_embeddings

from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import prepare
from coconut_ds.probing.states import attentions_of, final_norm, layer_states
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.reasoner import Reasoner


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reasoner(request) -> Reasoner:
    return make_reasoner(request.param)


def test_a_trace_holds_what_the_layers_hold(reasoner):
    """Each layer's state from a hook on its block; the final norm is applied once by hand, then head and softmax."""
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


@pytest.mark.parametrize("pass_positions", [1, 5, 16])
def test_small_passes_compute_the_same_states(reasoner, pass_positions):
    """A server limits the positions of each pass: to fewer than a prompt has, or than several prompts have together."""
    questions = [QUESTION, *REFERENCES]
    limited = replace(reasoner, pass_positions=pass_positions)
    known, again = (baselines_of(one, questions, max_new_tokens=2) for one in (reasoner, limited))
    assert [one.tokens for one in again] == [one.tokens for one in known]
    cases, fed = [one.case for one in known], [one.fed for one in known]
    for one, other in zip(layer_states(reasoner, cases, fed), layer_states(limited, cases, fed), strict=True):
        torch.testing.assert_close(one.layers, other.layers, rtol=1e-4, atol=1e-4)
