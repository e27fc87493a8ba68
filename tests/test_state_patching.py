"""Attention of thoughts, layer × position patching and the module of a model with its thoughts, against slow passes."""

from dataclasses import replace

import pytest
import torch
from making_graphs import make_graph_reasoner, problems_of
from making_probing import QUESTION, REFERENCES, make_reasoner, sequence, slow_score

from coconut_ds.errors import DataError
from coconut_ds.probing.baselines import Baseline, baselines_of
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind, random_direction
from coconut_ds.probing.state_patching import StatePatching, patch_states
from coconut_ds.probing.thought_attention import thought_attention
from coconut_ds.reasoner import Reasoner

LIMIT = 3
"""Longest text, in tokens."""


def blocks_of(reasoner: Reasoner, embeds: torch.Tensor, replaced: tuple[int, int, torch.Tensor] | None = None):
    """The states [T, D] of GPT-2 at each layer, block by block, and after the final norm, without any hook."""
    model = reasoner.backbone.model.transformer
    states = embeds + model.wpe.weight[: embeds.shape[1]]
    layers = []
    for layer in range(len(model.h) + 1):
        if layer:
            made = model.h[layer - 1](states)
            states = made[0] if isinstance(made, tuple) else made
        if replaced is not None and replaced[0] == layer:
            states = states.clone()
            states[0, replaced[1]] = replaced[2]
        layers.append(states[0])
    return layers, model.ln_f(states)[0]


def slow_effect(
    reasoner: Reasoner, own: Baseline, donor: Baseline, place: tuple[int, int, torch.Tensor] | None, later: str
) -> float:
    """log p(donor's text) - log p(own text), with one state replaced: one sequence, one token at a time, no cache."""
    embeds, first = sequence(reasoner, own.case, own.fed), own.case.prompt.first_thought
    if place is not None and later == "recomputed":
        for index in range(own.case.num_latents):
            if place[1] < first + index:
                embeds[0, first + index] = blocks_of(reasoner, embeds[:, : first + index], place)[1][-1]
    scores = []
    for one in (donor, own):
        whole, total = embeds, 0.0
        for token in one.tokens:
            logits = reasoner.backbone.model.lm_head(blocks_of(reasoner, whole, place)[1][-1])
            logits[list(reasoner.backbone.markers.all())] = float("-inf")
            total += float(logits.log_softmax(-1)[token])
            whole = torch.cat([whole, reasoner.loop.embed(torch.tensor([[token]]))], dim=1)
        scores.append(total)
    return scores[0] - scores[1]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return make_reasoner("gpt2")


def patched(reasoner: Reasoner, **more: object) -> tuple[StatePatching, Baseline, Baseline]:
    """A patching, and the baselines of its question and its donor."""
    found = patch_states(reasoner, QUESTION, references=REFERENCES, max_new_tokens=LIMIT, **more)
    return found, *baselines_of(reasoner, [QUESTION, found.donor], max_new_tokens=LIMIT)


@pytest.mark.parametrize("later", ["recomputed", "kept"])
@torch.no_grad()
def test_every_cell_is_what_a_slow_pass_gives(reasoner, later):
    found, own, donor = patched(reasoner, later=later, seed=5)
    before = slow_effect(reasoner, own, donor, None, later)
    prompt = sequence(reasoner, donor.case, donor.fed)
    ends = [slow_score(reasoner, prompt, list(one.tokens)) for one in (donor, own)]
    span = ends[0] - ends[1] - before
    states = blocks_of(reasoner, prompt)[0]
    own_states = blocks_of(reasoner, sequence(reasoner, own.case, own.fed))[0]
    shift = len(donor.case.prompt) - len(own.case.prompt)
    first, width = own.case.prompt.first_thought - 1, len(found.positions)
    assert width == own.case.num_latents + 2
    assert found.positions[1:4] == ("thought 1", "thought 2", "thought 3")
    random = next(one for one in found.controls if one.name == "random")
    for layer in range(len(states)):
        for index in range(width):
            at = first + index
            vector = states[layer][at + shift]
            effect = (slow_effect(reasoner, own, donor, (layer, at, vector), later) - before) / span
            assert found.effect.cells[layer][index].effect == pytest.approx(effect, abs=2e-3), (layer, index)
            length = (vector - own_states[layer][at]).norm()
            noisy = own_states[layer][at] + length * random_direction(f"5/{QUESTION}/{layer}/{at}", len(vector))
            effect = (slow_effect(reasoner, own, donor, (layer, at, noisy), later) - before) / span
            assert random.cells[layer][index].effect == pytest.approx(effect, abs=2e-3), (layer, index)


@pytest.fixture(scope="module")
def rotary() -> Reasoner:
    """A model that adds no embedding of the position, and whose texts differ between questions of the same length."""
    return make_reasoner("llama")


SUMS = [f"{a} + {b} + {c}" for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)]


def test_the_last_state_decides_the_first_token_and_the_first_thought_is_its_intervention(reasoner, rotary):
    """After the last layer, the last position's state is all that the first token depends on."""
    found, own, donor = patched(reasoner)
    if own.tokens[0] != donor.tokens[0]:
        assert not found.effect.cells[-1][-1].is_own
    # Replacing the input of the first block at thought 1 is patching the thought.
    found = patch_states(rotary, SUMS[0], references=SUMS[1:], max_new_tokens=LIMIT)
    what = Intervention(Kind.PATCH, 1, donor=found.donor)
    (outcome,) = intervene(rotary, SUMS[0], what, max_new_tokens=LIMIT)[0].effect.outcomes
    cell = found.effect.cells[0][1]
    assert not cell.is_own or outcome.text == found.text
    assert not cell.is_donors or outcome.text == found.donor_text
    assert found.effect.cells[0][1].effect != 0


def test_other_positions_and_what_is_refused(reasoner, rotary):
    found = patch_states(rotary, SUMS[0], references=SUMS[1:], positions="all", later="kept", max_new_tokens=LIMIT)
    assert len(found.positions) == len(baselines_of(rotary, SUMS[:1], max_new_tokens=LIMIT)[0].case.prompt)
    with pytest.raises(DataError, match="is the question itself"):
        patch_states(reasoner, QUESTION, QUESTION)
    longer = next(one for one in REFERENCES if len(one) != len(QUESTION))
    with pytest.raises(DataError, match=r"positions=all|needs another question"):
        patch_states(reasoner, QUESTION, longer, positions="all", max_new_tokens=LIMIT)
    with pytest.raises(DataError, match="needs another question"):
        patch_states(reasoner, QUESTION)
    parallel = Reasoner(reasoner.backbone, replace(reasoner.card, iterations=2))
    with pytest.raises(DataError, match="set later=kept"):
        patch_states(parallel, QUESTION, longer)


def test_attention_is_that_of_single_passes_and_edges_are_marked():
    (problem,) = problems_of("arrows", 1)
    reasoner = make_graph_reasoner("arrows", [problem])
    found = thought_attention(reasoner, problem.question, problem)
    (known,) = baselines_of(reasoner, [problem.question], max_new_tokens=1)
    model = reasoner.backbone.model
    model.set_attn_implementation("eager")
    made = model.base_model(
        inputs_embeds=sequence(reasoner, known.case, known.fed), use_cache=False, output_attentions=True
    )
    model.set_attn_implementation("sdpa")
    first, length = known.case.prompt.first_thought, len(known.case.prompt)
    question = len(reasoner.prompter.encode([problem.question])[0]) - 1
    at = [question, *range(first - 1, first - 1 + known.case.num_latents), length - 1]
    assert (found.positions, len(found.tokens)) == (tuple(at), length)
    for layer, weights in enumerate(made.attentions):
        torch.testing.assert_close(torch.tensor(found.weights[layer]), weights[0][:, at], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(found.mean(layer + 1)), weights[0].mean(0)[at], rtol=1e-4, atol=1e-5)
    names = problem.extra["idx_to_symbol"]
    edges = {f"{names[a]} → {names[b]}": f"{names[a]}>{names[b]}" for a, b in problem.extra["edges"]}
    assert {edge.name: found.tokens[edge.positions[0]].strip() for edge in found.edges} == edges
    optimal = [edge for edge in found.edges if edge.is_optimal]
    assert {edge.hop for edge in optimal} == set(range(max(edge.hop for edge in optimal) + 1))
    weight, equal = found.on_edges(1)[-1][0]
    assert weight == pytest.approx(sum(found.mean(1)[-1][one] for one in found.edges[0].positions))
    assert equal == pytest.approx(len(found.edges[0].positions) / length)


@torch.no_grad()
def test_a_hook_on_a_thought_is_an_intervention(reasoner):
    """Zero ablation with a plain hook of PyTorch gives the log probabilities that ``intervene`` reports."""
    module = reasoner.trace_module()
    report = intervene(reasoner, QUESTION, Intervention(Kind.ZERO, 2), max_new_tokens=LIMIT)[0]
    (own,) = baselines_of(reasoner, [QUESTION], max_new_tokens=LIMIT)

    def score() -> float:
        logits = module(QUESTION, own.tokens)[:-1].clone()
        logits[:, list(reasoner.backbone.markers.all())] = float("-inf")
        return float(logits.log_softmax(-1)[torch.arange(len(own.tokens)), list(own.tokens)].sum())

    assert score() == pytest.approx(report.log_probability, abs=1e-3)
    hook = module.thoughts[1].register_forward_hook(lambda thought, given, made: torch.zeros_like(made))
    assert score() == pytest.approx(report.effect.outcomes[0].log_probability, abs=1e-3)
    hook.remove()
    assert score() == pytest.approx(report.log_probability, abs=1e-3)
    with pytest.raises(DataError, match="one after another"):
        make_reasoner(method="pause_as_thought").trace_module()
