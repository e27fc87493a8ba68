"""Inner products and attention of thoughts by group of nodes or edges, against single passes."""

import pytest
import torch
from making_graphs import FORMATS, make_graph_reasoner, problems_of

from coconut_ds.data.graph_text import graph_text
from coconut_ds.probing.graph_values import graph_views
from coconut_ds.probing.superposition import edge_groups, edge_positions, node_groups, superposition


@pytest.mark.parametrize("form", FORMATS)
def test_groups_hold_what_single_passes_give(form):
    """Inner products with embedding rows, and eager attention, for one problem at a time and summed by hand."""
    problems = problems_of(form, 3)
    reasoner = make_graph_reasoner(form, problems)
    found = {(one.measure, one.thought, one.group): one for one in superposition(reasoner, problems)}
    model, tokenizer = reasoner.backbone.model, reasoner.backbone.tokenizer
    expected: dict[tuple[str, int, str], list[float]] = {}
    for problem in problems:
        text = graph_text(problem, FORMATS[form])
        form_of = FORMATS[form]
        ids = tokenizer.encode(f"{problem.question}{form_of.question_end}", add_special_tokens=False)
        words = tokenizer.convert_ids_to_tokens(ids)
        places = edge_positions(reasoner, text)
        shift = 1 if form_of.starts_with_eos else 0
        for edge, own in places.items():
            names = [words[place - shift] for place in own]
            a, b = (text.symbols[node] for node in edge)
            if form == "symbolic":
                assert names in ([a, b, "|"], [a, b])
            elif form == "arrows":
                assert names == [f"{a}>{b}"]
            else:
                assert names in (["Every", a, "is", "a", b, "."], [a, "is", "a", b, "."])
        ids = [tokenizer.eos_token_id, *ids] if form_of.starts_with_eos else [*ids, reasoner.backbone.markers.start]
        embeds = model.get_input_embeddings()(torch.tensor([ids])).detach()
        model.set_attn_implementation("eager")
        for thought in (1, 2):
            made = model.base_model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
            state = made.last_hidden_state[0, -1].detach()
            for group, nodes in node_groups(text, thought).items():
                table = model.get_input_embeddings().weight
                rows = [table[[tokenizer.vocab[name] for name in text.names(n)]].mean(dim=0) for n in nodes]
                if rows:
                    value = sum(float((state @ row).detach()) for row in rows) / len(rows)
                    expected.setdefault(("inner product", thought, group), []).append(value)
            for layer, weights in enumerate(made.attentions, start=1):
                for group, edges in edge_groups(text, thought).items():
                    sums = [float(weights[0, :, -1, places[edge]].sum().detach()) for edge in edges]
                    if sums:
                        key = (f"attention, layer {layer}", thought, group)
                        expected.setdefault(key, []).append(sum(sums) / len(sums))
            embeds = torch.cat([embeds, state.expand(1, 1, -1)], dim=1)
        model.set_attn_implementation("sdpa")
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].value.estimate == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-4)
        assert found[key].num_problems == len(values)


def test_thoughts_of_a_step_share_its_hop():
    problems = problems_of("text", 2)
    reasoner = make_graph_reasoner("text", problems, num_thoughts=4, c_thought=2)
    views = graph_views(reasoner, problems, frontier_only=True)
    assert [(one.num_thoughts, one.hop) for one in views[0].after] == [(0, 1), (2, 1), (4, 2)]
    found = superposition(reasoner, problems)
    assert {one.thought for one in found} == {1, 2, 3, 4}
    first = [one for one in found if one.group == "frontier" and one.measure == "inner product"]
    assert len(first) == 4
