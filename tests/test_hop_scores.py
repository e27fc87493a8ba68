"""What the head reads by hop, against one state at a time; in evaluations, and as the rule by which stages end."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from making_config import composed, refusal
from making_graphs import make_graph_reasoner, problems_of, walks
from torch_engine import tiny_experiment

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.hop_scores import HopMeasure, HopScore, HopValue, scores_by_hop
from coconut_ds.evaluation.prediction import Evaluation
from coconut_ds.evaluation.session import evaluate
from coconut_ds.evaluation.statistics import Mean
from coconut_ds.generation.prompter import Prompter, Thoughts
from coconut_ds.methods import METHODS
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings.compose import compose_eval_config


def slow_values(reasoner: Reasoner, problem: Problem, number: int, size: int) -> dict[int, tuple[float, bool, float]]:
    """Loss, whether the likeliest word is in the frontier, and its mass, by hop, with no cache and no batch."""
    tokenizer, markers, form = reasoner.backbone.tokenizer, reasoner.backbone.markers, reasoner.card.text_format
    model = reasoner.backbone.model
    ids = tokenizer.encode(f"{problem.question}{form.question_end}", add_special_tokens=False)
    ids = [tokenizer.eos_token_id, *ids] if form.one_token else [*ids, markers.start]
    embeds, found = model.get_input_embeddings()(torch.tensor([ids])), {}
    asked, symbols = question_of(problem), problem.extra["idx_to_symbol"]
    paths = walks(asked.graph, asked.root)
    hops = {end: min(len(path) - 1 for path in paths if path[-1] == end) for end in {path[-1] for path in paths}}
    places = {size * hop - 1: hop for hop in range(1, number // size + 1)}
    if form.one_token and number % size == 0:
        places[number] = number // size + 1
    for thought in range(number + 1):
        state = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1:]
        embeds = torch.cat([embeds, state], dim=1)
        hop = places.get(thought, 0)
        nodes = [node for node, distance in hops.items() if distance == hop]
        if 1 <= hop <= len(problem.steps):
            words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
            logits = model.get_output_embeddings()(state)[0, 0]
            probabilities = dict(zip(words, logits.softmax(-1).tolist(), strict=True))
            loss, names = 0.0, set()
            for node in nodes:
                before = {path[-2] for path in paths if path[-1] == node and len(path) - 1 == hop}
                arrows = [f"{symbols[parent]}>{symbols[node]}" for parent in before]
                own = arrows if arrows[0] in probabilities else [symbols[node]]
                loss -= sum(math.log(probabilities[name]) for name in own) / len(own) / len(nodes)
                names |= set(own)
            likeliest = max(probabilities, key=lambda word: probabilities[word])
            found[hop] = loss, likeliest in names, sum(probabilities[name] for name in names)
    return found


@dataclass(frozen=True)
class OneOf:
    """One rank of several, whose results stay its own."""

    rank: int
    size: int
    device = torch.device("cpu")

    def gather(self, value):
        return [value]


def measure_of(reasoner: Reasoner, micro: int = 2, size: int = 1, **more) -> HopMeasure:
    reader = HopReader(reasoner.backbone.tokenizer, reasoner.card.text_format)
    return HopMeasure(reasoner.prompter, reader, size, micro, reasoner.context_length, **more)


@pytest.mark.parametrize(
    ("form", "number", "size"),
    [("symbolic", 2, 1), ("symbolic", 0, 1), ("symbolic", 2, 2), ("text", 3, 1), ("arrows", 2, 2)],
)
def test_values_are_those_of_one_state_at_a_time_on_any_number_of_ranks(form, number, size, monkeypatch):
    """Problems with different numbers of steps and tokens; a rank repeats a problem; one problem has no graph; logits
    are computed in several chunks."""
    monkeypatch.setattr("coconut_ds.model.hop_targets.LOGITS_AT_A_TIME", 150)
    problems = problems_of(form, 5)
    reasoner = make_graph_reasoner(form, problems, c_thought=size)
    mixed = [*problems[:2], replace(problems[2], extra={}), *problems[3:]]
    measures = [measure_of(reasoner, size=size, graphs_only=True)]
    measures += [replace(measures[0], ranks=OneOf(rank, 3)) for rank in range(3)]
    values = [one.values(reasoner.loop, mixed, Thoughts(number)) for one in measures]
    expected = {index: slow_values(reasoner, problem, number, size) for index, problem in enumerate(problems)}
    del expected[2]
    found = {(value.problem, value.hop): value for value in values[0]}
    assert len(found) == len(values[0]) == sum(map(len, expected.values())) > 0
    for index, own in expected.items():
        for hop, (loss, inside, mass) in own.items():
            value = found[index, hop]
            assert (value.loss, value.mass) == pytest.approx((loss, mass), rel=1e-3)
            assert value.in_frontier == inside
    several = [value for own in values[1:] for value in own]
    assert sorted((one.problem, one.hop) for one in several) == sorted(found)
    for value in several:
        assert value.loss == pytest.approx(found[value.problem, value.hop].loss, rel=1e-4)


def test_nothing_is_measured_where_the_states_do_not_exist():
    problems = problems_of("symbolic", 2)
    reasoner = make_graph_reasoner("symbolic", problems)
    base = measure_of(reasoner)
    assert base.values(reasoner.loop, [Problem("0 1 [Q] 0 1 [R] 0", (), "1")], Thoughts(1)) == []
    prompter = base.prompter
    for other in (
        replace(prompter, parallel=Parallel("jacobi", 2)),
        replace(prompter, method=METHODS["cot"]),
        replace(prompter, method=METHODS["coconut_reversed"]),
    ):
        assert isinstance(other, Prompter)
        assert replace(base, prompter=other).values(reasoner.loop, problems, Thoughts(1)) == []


def test_means_are_over_problems_and_several_states_of_a_problem_count_once():
    values = [HopValue(0, 2, 1.0, 1.0, 0.5), HopValue(0, 2, 3.0, 0.0, 0.7), HopValue(4, 2, 4.0, 1.0, 0.1)]
    (score,) = scores_by_hop(values).values()
    assert (score.hop, score.problems, score.loss, score.mass) == pytest.approx((2, 2, 3.0, 0.35))
    assert score.in_frontier.estimate == 0.75
    assert scores_by_hop([]) == {}


def test_an_evaluation_stores_and_prints_hops_for_each_number_of_thoughts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("coconut_ds.evaluation.report.draw_sweep", lambda *arguments: None)
    problems = problems_of("symbolic", 3)
    reasoner = make_graph_reasoner("symbolic", problems)
    backbone = reasoner.backbone
    save_model(tmp_path / "model", backbone.model, backbone.model.state_dict(), backbone.tokenizer, reasoner.card)
    (tmp_path / "data.json").write_text(json.dumps([problem.as_dict() for problem in problems]))
    line = [f"checkpoint={tmp_path / 'model'}", f"data={tmp_path / 'data.json'}", f"out={tmp_path / 'out'}"]
    line += ["data.format=symbolic", "n_thoughts=0,2"]
    evaluate(compose_eval_config(line))
    scores = json.loads((tmp_path / "out" / "sweep.json").read_text())
    expected = [measure_of(reasoner).scores(reasoner.loop, problems, Thoughts(number)) for number in (0, 2)]
    assert [list(one["hops"]) for one in scores] == [["1"], ["1", "2", "3"]]
    assert scores[1]["hops"]["2"]["loss"] == pytest.approx(expected[1][2].loss, rel=1e-4)
    assert scores[1]["hops"]["3"]["problems"] == 3
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.split()[:2] == ["2", "3"])
    assert row[-2:] == [f"{expected[1][3].loss:.3f}", "3"]
    evaluate(compose_eval_config(line))
    # DeepSpeed prints a line when a process imports it.
    own = "".join(line for line in printed.splitlines(keepends=True) if "real_accelerator" not in line)
    assert capsys.readouterr().out.endswith(own)


def score(hop: int, share: float, mass: float) -> HopScore:
    return HopScore(hop, 9, 1.0, Mean(share, 0.0, 1.0), mass)


def test_a_stage_is_as_well_learned_as_its_worst_hop():
    made = Evaluation([], 2, 0, {1: score(1, 1.0, 0.8), 2: score(2, 0.9, 0.85)})
    assert (made.mastery("in_frontier"), made.mastery("mass")) == (0.9, 0.8)
    assert math.isnan(made.mastery("accuracy"))
    assert math.isnan(Evaluation([], 0, 0).mastery("mass"))


def test_a_run_reads_hops_only_if_something_needs_them():
    """Here by the tokens of steps, since there are no graphs."""
    by_hop = tiny_experiment("advance=accuracy", "advance_metric=mass")
    scores = by_hop.hop_scores(by_hop.loop().eval(), by_hop.problems.valid, 2)
    assert [one.problems for one in scores.values()] == [6, 6]
    assert list(scores[2].metrics) == ["hop_2_loss", "hop_2_in_frontier", "hop_2_mass"]
    assert tiny_experiment().hop_scores(None, [], 2) == {}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "has no effect with training.advance=epochs, which says when stages end; set training.advance_metric="),
        (["advance=accuracy", "stage_switches=[1]"], "has no effect with training.stage_switches"),
        (["advance=accuracy", "method=cot"], "method.kind=cot with these settings has neither thoughts nor pause"),
        (["advance=accuracy", "method=coconut_reversed"], "the model decides when to think"),
        (["advance=accuracy", "thinking=looped"], "method.thinking=looped does not compute them"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused_with_what_to_type(overrides: list[str], words: str) -> None:
    assert words in refusal(["advance_metric=in_frontier", *overrides])


def test_with_one_target_token_only_a_metric_by_hop_can_end_stages():
    by_accuracy = ["data=prosqa_symbolic", "advance=accuracy"]
    assert "or training.advance_metric=in_frontier" in refusal(by_accuracy)
    assert composed(*by_accuracy, "advance_metric=in_frontier").training.advance_metric == "in_frontier"
