"""Graph analysis on a random model: heights, values, groups, changed edges, each against a slow and obvious count."""

import itertools
import json
import math
import random

import pytest
import torch
from conftest import SHAPES

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.graphs import Graph
from coconut_ds.data.layered import LayeredGraphs
from coconut_ds.data.problem import Problem
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.data.symbolic import SymbolicProsqa
from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.formats import SYMBOLIC, TEXT
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.probing import counterfactuals as counterfactuals_module
from coconut_ds.probing.answers import answers_after
from coconut_ds.probing.baselines import Baseline
from coconut_ds.probing.cases import Case
from coconut_ds.probing.counterfactuals import counterfactuals
from coconut_ds.probing.graph_text import graph_text, redirected, unrelated
from coconut_ds.probing.graph_values import graph_views, height_values, parallelism
from coconut_ds.probing.superposition import edge_groups, edge_positions, node_groups, superposition
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings import ModelConfig, SplitSizes

FORMATS = {"text": TEXT, "symbolic": SYMBOLIC, "arrows": TEXT}


def problems_of(form: str, count: int = 6) -> list[Problem]:
    if form == "symbolic":
        return SymbolicProsqa(0, SplitSizes(train=1, valid=1, test=count), (3, 4), False).test()
    if form == "arrows":
        size = {"train": 1, "valid": 1, "test": count}
        return LayeredGraphs(0, size, (8, 9), (3, 4), (8, 9), False, "arrows").test()
    return [generate_problem(random.Random(f"graphs/{index}")) for index in range(count)]


def make_reasoner(form: str, problems: list[Problem], **card) -> Reasoner:
    torch.manual_seed(3)
    shape = {**SHAPES["gpt2"], "n_positions": 512, "initializer_range": 0.3}
    settings = ModelConfig(model_id="gpt2", model_init="scratch", tokenizer="dataset", model_config_overrides=shape)
    texts = [text for p in problems for text in (p.question, *p.steps, p.answer, *p.extra["idx_to_symbol"])]
    backbone = build_backbone(settings, build_word_tokenizer([*texts, "[A] Every"]))
    values = {"stage": 2, "num_thoughts": 2, "c_thought": 1, "max_latent_stage": 4, "format": FORMATS[form].name}
    values |= card
    return Reasoner(backbone, ModelCard("coconut", marker_ids=marker_table(backbone.markers), **values))


def walks(graph: Graph, start: int) -> list[list[int]]:
    """All paths that begin at a node, by trying every one."""
    return [[start], *([start, *rest] for child in graph.children[start] for rest in walks(graph, child))]


@pytest.mark.parametrize("form", FORMATS)
def test_heights_groups_and_optimal_edges_are_those_of_all_paths(form):
    for problem in problems_of(form):
        text = graph_text(problem, FORMATS[form])
        graph, root, target = text.graph, text.asked.root, text.asked.target
        for node in range(graph.num_nodes):
            lengths = [len(walk) - 1 for walk in walks(graph, node) if not graph.children[walk[-1]]]
            assert (graph.heights()[node], graph.heights(longest=True)[node]) == (min(lengths), max(lengths))
        paths = walks(graph, root)
        hops = {node: min(len(p) - 1 for p in paths if p[-1] == node) for node in {p[-1] for p in paths}}
        shortest = [p for p in paths if p[-1] == target and len(p) - 1 == hops[target]]
        assert text.optimal == {edge for path in shortest for edge in itertools.pairwise(path)}
        reaching = {node for node in range(graph.num_nodes) if any(walk[-1] == target for walk in walks(graph, node))}
        assert text.correct == reaching
        for hop in (1, 2, 3):
            groups = node_groups(text, hop)
            assert set(groups["not reachable"]) == set(range(graph.num_nodes)) - set(hops)
            assert set(groups["reachable"]) == {node for node, d in hops.items() if d <= hop}
            assert set(groups["frontier"]) == {node for node, d in hops.items() if d == hop}
            assert set(groups["optimal"]) == {path[hop] for path in shortest if hop < len(path)}
            edges = edge_groups(text, hop)
            assert set(edges["not reachable"]) == {e for e in graph.edges if e[0] not in hops}
            assert set(edges["reachable"]) == {e for e in graph.edges if hops.get(e[0], 99) <= hop - 1}
            assert set(edges["frontier"]) == {e for e in graph.edges if hops.get(e[0]) == hop - 1}
            assert set(edges["optimal"]) == {(path[hop - 1], path[hop]) for path in shortest if hop < len(path)}


def slow_probabilities(reasoner: Reasoner, question: str, number: int, before: str) -> dict[str, float]:
    """Of all words after k thoughts: whole passes, one token after the other."""
    tokenizer, markers, form = reasoner.backbone.tokenizer, reasoner.backbone.markers, reasoner.card.text_format
    model = reasoner.backbone.model
    ids = tokenizer.encode(f"{question}{form.question_end}", add_special_tokens=False)
    ids = [*([tokenizer.eos_token_id] if form.starts_with_eos else []), *ids]
    ids += [] if form.one_token else [markers.start]
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    for _ in range(number):
        states = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        embeds = torch.cat([embeds, states[:, -1:]], dim=1)
    after = [] if form.one_token else [markers.end]
    after += tokenizer.encode(before, add_special_tokens=False) if before else []
    if after:
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([after]))], dim=1)
    logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].detach().clone()
    logits[list(markers.all())] = float("-inf")
    return dict(zip(tokenizer.convert_ids_to_tokens(range(len(logits))), logits.softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("form", FORMATS)
def test_values_are_probabilities_of_names_normalised_over_the_frontier(form):
    problems = problems_of(form, 3)
    reasoner = make_reasoner(form, problems)
    views = graph_views(reasoner, problems)
    for problem, view in zip(problems, views, strict=True):
        text = graph_text(problem, FORMATS[form])
        distances = text.graph.distances(text.asked.root)
        assert [one.num_thoughts for one in view.after] == [0, 1, 2]
        for number, frontier in enumerate(view.after):
            before = "Every" if number else f"{text.symbols[text.asked.root]} is a"
            hop = max(number, 1)
            if form != "text":
                before, hop = "", number + 1
            assert (frontier.hop, frontier.before) == (hop, before)
            assert {one.node for one in frontier.nodes} == set(range(text.graph.num_nodes))
            words = slow_probabilities(reasoner, problem.question, number, before)
            slow = {node: words[name] for node, name in enumerate(text.symbols)}
            if form == "arrows":
                for node, name in enumerate(text.symbols):
                    edges = [f"{text.symbols[a]}>{name}" for a, b in text.graph.edges if b == node]
                    slow[node] = sum(words[edge] for edge in edges) if edges else slow[node]
            mass = sum(slow[node] for node, distance in distances.items() if distance == hop)
            assert frontier.mass == pytest.approx(mass, rel=1e-3)
            for one in frontier.nodes:
                assert one.probability == pytest.approx(slow[one.node], rel=1e-3)
                assert one.in_frontier == (distances.get(one.node) == hop)
                expected = pytest.approx(slow[one.node] / mass, rel=1e-3) if one.in_frontier else None
                assert one.value == expected
    json.dumps([view.as_dict() for view in views], allow_nan=False)
    short = graph_views(reasoner, problems, frontier_only=True)
    for view, whole in zip(short, views, strict=True):
        for some, everything in zip(view.after, whole.after, strict=True):
            kept = [one for one in everything.nodes if one.in_frontier]
            assert [one.name for one in some.nodes] == [one.name for one in kept]
            assert [one.value for one in some.nodes] == pytest.approx([one.value for one in kept], rel=1e-3)


def test_answers_of_symbolic_problems_follow_their_cue():
    problems = problems_of("symbolic", 2)
    reasoner = make_reasoner("symbolic", problems)
    known = [problem.answer for problem in problems]
    for problem, after in zip(problems, answers_after(reasoner, [p.question for p in problems], known), strict=True):
        for number, one in enumerate(after):
            words = slow_probabilities(reasoner, problem.question, number, "[A]")
            best = max(words, key=words.__getitem__)
            assert (one.answer, one.forced) == (best, best)
            assert one.probability == pytest.approx(words[best], rel=1e-3)
            assert math.exp(one.known_log_probability) == pytest.approx(words[problem.answer], rel=1e-3)


def test_parallelism_and_height_values_by_hand():
    problems = problems_of("text", 5)
    views = graph_views(make_reasoner("text", problems), problems, [1, 2], frontier_only=True)
    for number, curve in zip((1, 2), parallelism(views), strict=True):
        values = [sorted((n.value for n in view.after[number - 1].nodes), reverse=True) for view in views]
        assert (curve.num_thoughts, curve.num_problems) == (number, 5)
        for top in (1, 2, 3):
            assert curve.cumulative[f"top {top}"] == pytest.approx(sorted(sum(own[:top]) for own in values))
    found = height_values(views)
    for one in found:
        nodes = [node for view in views for node in view.after[one.num_thoughts - 1].nodes]
        for is_correct, mean, count in (
            (True, one.correct, one.num_correct),
            (False, one.incorrect, one.num_incorrect),
        ):
            own = [
                node.value
                for node in nodes
                if getattr(node, f"height_{one.definition}") == one.height and node.is_correct == is_correct
            ]
            assert len(own) == count
            assert mean is None if not own else mean.estimate == pytest.approx(sum(own) / count)
    nodes = sum(len(view.after[index].nodes) for view in views for index in (0, 1))
    for definition in ("shortest", "longest"):
        assert sum(one.num_correct + one.num_incorrect for one in found if one.definition == definition) == nodes


@pytest.mark.parametrize("form", FORMATS)
def test_groups_hold_what_single_passes_give(form):
    """Inner products with embedding rows, and eager attention of one problem at a time, summed by hand."""
    problems = problems_of(form, 3)
    reasoner = make_reasoner(form, problems)
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


@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_edge_changes_the_answer_or_not(form):
    """The changed graph is read back from the changed question, sentence by sentence."""
    changed = 0
    for index, problem in enumerate(problems_of(form, 30)):
        text = graph_text(problem, FORMATS[form])
        for make, turns in ((redirected, True), (unrelated, False)):
            twin = make(text, random.Random(index))
            if twin is None:
                continue
            changed += turns
            new = twin.problem
            if form == "symbolic":
                edges = [tuple(pair.split()) for pair in new.question.split(" [Q] ")[0].split(" | ")]
            elif form == "arrows":
                edges = [tuple(pair.split(">")) for pair in new.question.split(" From ")[0].split()]
                assert [tuple(step.split(">"))[1] for step in new.steps][-1] == new.answer
            else:
                sentences = new.question.split(" Is ")[0].replace("Every ", "").rstrip(".").split(". ")
                edges = [tuple(sentence.split(" is a ")) for sentence in sentences]
            nodes = {symbol: node for node, symbol in enumerate(text.symbols)}
            graph = Graph(len(nodes), tuple((nodes[a], nodes[b]) for a, b in edges))
            assert sorted(graph.edges) == sorted(twin.graph.edges)
            assert len(set(text.graph.edges) ^ set(graph.edges)) == 2
            reached = {walk[-1] for walk in walks(graph, text.asked.root)}
            assert (text.asked.target in reached, text.asked.distractor in reached) == (not turns, turns)
            goal = text.symbols[text.asked.distractor if turns else text.asked.target]
            assert new.answer.rstrip(".").split()[-1] == goal
            assert question_of(new).target == nodes[goal]
            assert len(new.steps) == graph.distances(text.asked.root)[nodes[goal]]
            asked = {"symbolic": "[Q]", "arrows": " From ", "text": " Is "}[form]
            assert new.question.split(asked)[1] == problem.question.split(asked)[1]
            for edge in twin.graph.edges:
                start, end = twin.span(edge)
                assert new.question[start:end] == twin.edge(edge)
    assert changed > 10


@pytest.mark.parametrize("follows", [True, False])
def test_counterfactuals_count_those_who_follow(monkeypatch, follows):
    """Answers of one who reads the graph, and of one who only knows which of the two options it was."""
    problems = problems_of("text", 12)
    reasoner = make_reasoner("text", problems)
    known = {problem.question.split("Is ")[-1]: problem.answer for problem in problems}

    def answer(question: str) -> str:
        edges, (_, asked) = {}, question.split(" Is ")
        for sentence in question.split(" Is ")[0].replace("Every ", "").rstrip(".").split(". "):
            parent, child = sentence.split(" is a ")
            edges.setdefault(parent, []).append(child)
        root, first, second = asked.rstrip("?").replace(" a ", " ").replace(" or ", " ").split()
        reached = [root]
        for name in reached:
            reached += [child for child in edges.get(name, []) if child not in reached]
        right = f"{root} is a {first if first in reached else second}."
        return right if follows else known[asked]

    def answers(reasoner, questions, *arguments):
        made = [answer(question) for question in questions]
        return [Baseline(Case(q, None), None, (), f"### {a}", a, 0.0) for q, a in zip(questions, made, strict=True)]

    monkeypatch.setattr(counterfactuals_module, "baselines_of", answers)
    made = counterfactuals(reasoner, problems)
    assert (made.num_problems, made.num_right) == (12, 12)
    assert len(made.cases) > 6
    assert made.followed.estimate == float(follows)
    assert made.stayed.estimate == 1.0
    assert all(one.followed == follows and one.answer != one.right_answer for one in made.cases)


def test_who_answers_nothing_right_is_not_changed():
    problems = problems_of("text", 3)
    found = counterfactuals(make_reasoner("text", problems), problems)
    assert (found.num_problems, found.num_right, found.followed, found.stayed, found.cases) == (3, 0, None, None, ())


def test_thoughts_of_a_step_share_its_hop():
    problems = problems_of("text", 2)
    reasoner = make_reasoner("text", problems, num_thoughts=4, c_thought=2)
    views = graph_views(reasoner, problems, frontier_only=True)
    assert [(one.num_thoughts, one.hop) for one in views[0].after] == [(0, 1), (2, 1), (4, 2)]
    found = superposition(reasoner, problems)
    assert {one.thought for one in found} == {1, 2, 3, 4}
    first = [one for one in found if one.group == "frontier" and one.measure == "inner product"]
    assert len(first) == 4
