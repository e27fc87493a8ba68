"""Probing: what is computed on the device is read from it explicitly, and nothing mixes devices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from making_graphs import make_graph_reasoner, problems_of
from making_probing import QUESTION, QUESTIONS, REFERENCES, make_reasoner

import strict_device
from coconut_ds.data.problem import Problem
from coconut_ds.probing import counterfactuals as counterfactuals_module
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.counterfactuals import counterfactuals
from coconut_ds.probing.effects import measure_effects
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.layer_passes import Replaced, raw_states, replaced_pass
from coconut_ds.probing.linear import linear_probes
from coconut_ds.probing.states import attentions_of, embedded, final_norm, layer_states
from coconut_ds.probing.superposition import superposition
from coconut_ds.probing.thought_attention import thought_attention
from coconut_ds.probing.trace import trace_of, trace_thoughts
from coconut_ds.reasoner import Reasoner

DEVICE = strict_device.device()


def there(make: Callable[..., Reasoner], *arguments: Any) -> Reasoner:
    """A reasoner whose model is on the strict device."""
    with torch.device(DEVICE):
        reasoner = make(*arguments)
    assert {parameter.device for parameter in reasoner.backbone.model.parameters()} == {DEVICE}
    return reasoner


@pytest.fixture(params=["gpt2", "llama"])
def reasoner(syncs, request) -> Reasoner:
    return there(make_reasoner, request.param)


def test_states_and_attention(reasoner):
    baselines = baselines_of(reasoner, QUESTIONS, max_new_tokens=1)
    cases, fed = [one.case for one in baselines], [one.fed for one in baselines]
    states = layer_states(reasoner, cases, fed)
    assert {tensor.device.type for one in states for tensor in (one.fed, one.layers)} == {"cpu"}
    assert [tuple(one.layers.shape) for one in states] == [(3, 4, 32)] * len(QUESTIONS)
    assert {weights.device.type for weights in attentions_of(reasoner, cases, fed)} == {"cpu"}
    assert type(final_norm(reasoner.loop)).__name__ in ("LayerNorm", "LlamaRMSNorm")


def test_states_are_replaced_and_thoughts_attend(reasoner):
    baseline = baselines_of(reasoner, [QUESTION], max_new_tokens=1)[0]
    with torch.no_grad():
        embeds = embedded(reasoner, [baseline.case], [baseline.fed])
        states = raw_states(reasoner.loop, embeds)
        replaced_pass(reasoner.loop, embeds, [Replaced(1, 0, states[1, 0])])
    assert states.device.type == "cpu"
    assert len(thought_attention(reasoner, QUESTION).weights) == reasoner.loop.num_layers


def test_the_trace_module(reasoner):
    with torch.no_grad():
        logits = reasoner.trace_module()(QUESTION, [1, 2])
    assert (logits.device, len(logits)) == (DEVICE, 3)


@pytest.mark.parametrize("method", ["coconut", "pause"])
def test_traces(syncs, method):
    reasoner = there(make_reasoner, "llama", method)
    traces = trace_thoughts(reasoner, QUESTIONS[:1], top_k=3, tokens=["1", "3"], max_new_tokens=1)
    assert len(traces) == 1


def test_a_trace_of_an_answer(reasoner):
    answer = reasoner.generate(QUESTION, keep_thoughts=True, max_new_tokens=1)[0]
    assert len(trace_of(reasoner, QUESTION, answer.completion, 3).thoughts) == 3
    assert len(reasoner.decode_thoughts(answer, 2)) == 3


INTERVENTIONS = [
    Intervention(Kind.ZERO, 2),
    Intervention(Kind.MEAN, 1),
    Intervention(Kind.PATCH, 3, donor=REFERENCES[1]),
    Intervention(Kind.TOKEN, 2, token="3"),
    Intervention(Kind.SCALE, 1, strength=-0.5),
    Intervention(Kind.NOISE, 1, draws=2),
    Intervention(Kind.SWAP, 1, other=3),
    Intervention(Kind.DROP, 1),
    Intervention(Kind.REPEAT, 2),
    Intervention(Kind.PATCH, 2, donor=REFERENCES[0], later="kept"),
]


def test_interventions(syncs):
    reasoner = there(make_reasoner, "llama")
    made = intervene(
        reasoner, QUESTION, INTERVENTIONS, references=REFERENCES[:2], max_new_tokens=1, with_controls=False
    )
    assert len(made) == len(INTERVENTIONS)


def test_controls(syncs):
    reasoner, pause = there(make_reasoner, "gpt2"), there(make_reasoner, "gpt2", "pause")
    assert intervene(reasoner, QUESTION, INTERVENTIONS[0], references=REFERENCES[:1], pause=pause, max_new_tokens=1)


def test_mean_effects(syncs):
    reasoner = there(make_reasoner, "gpt2")
    effects = [Intervention(Kind.ZERO, 2), Intervention(Kind.PATCH, 1), Intervention(Kind.TOKEN, 1, token="3")]
    assert measure_effects(reasoner, QUESTIONS[:2], effects, ["1", "2"], max_new_tokens=1)


def test_linear_probes(syncs):
    reasoner = there(make_reasoner, "gpt2")
    problems = [Problem(question, ("1",), answer) for question, answer in zip(QUESTIONS, "12312", strict=True)]
    assert linear_probes(reasoner, problems[:3], problems[3:])


def test_graphs(syncs, monkeypatch):
    problems = problems_of("text", 2)
    reasoner = there(make_graph_reasoner, "text", problems)
    assert superposition(reasoner, problems)
    # Only problems that are answered correctly are changed and asked again. Token 1 is the end of the text.
    monkeypatch.setattr(counterfactuals_module, "is_correct", lambda *arguments: True)
    with syncs.reading(1.0):
        assert counterfactuals(reasoner, problems).num_right == 2
