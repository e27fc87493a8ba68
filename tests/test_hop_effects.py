"""Effects of replaced thoughts by hops, against thoughts that are replaced by hand."""

import json

import pytest
import torch
from making_graphs import make_graph_reasoner, problems_of

from coconut_ds.probing.baselines import Trial, baselines_of, outcomes_of
from coconut_ds.probing.effects import measure_effects
from coconut_ds.probing.hop_effects import effects_by_hops
from coconut_ds.probing.interventions import Intervention, Kind


def test_right_answers_by_hops_against_thoughts_replaced_by_hand():
    """Thoughts become the mean over all questions; effects on all problems are those of ``measure_effects``."""
    problems = problems_of("symbolic", 8)
    reasoner = make_graph_reasoner("symbolic", problems)
    questions = [one.question for one in problems]
    baselines = baselines_of(reasoner, questions)
    # The model's own answers to half of the problems count as right.
    known = [one.answer if k % 2 else "nothing" for k, one in enumerate(baselines)]
    problems = [
        type(one)(one.question, one.steps, answer, one.extra) for one, answer in zip(problems, known, strict=True)
    ]
    hops = [len(one.steps) for one in problems]
    assert len(set(hops)) == 2
    found = effects_by_hops(reasoner, problems, max_new_tokens=3)
    assert [one.hops for one in found] == [None, *sorted(set(hops))]
    changes = [Intervention(kind, thought) for thought in (1, 2) for kind in (Kind.MEAN, Kind.PATCH)]
    assert list(found[0].effects) == measure_effects(reasoner, questions, changes, known, max_new_tokens=3)
    for group in found[1:]:
        chosen = [k for k, own in enumerate(hops) if own == group.hops]
        assert group.num_problems == len(chosen)
        assert group.undisturbed.estimate == sum(k % 2 for k in chosen) / len(chosen)
        for thought in (1, 2):
            (effect,) = (one for one in group.effects if (one.name, one.thought) == ("mean", thought))
            mean = torch.stack([one.fed for one in baselines]).mean(dim=0)[thought - 1]
            trials = [Trial(baselines[k], baselines[k].case.changed({thought - 1: mean})) for k in chosen]
            answers = [one.answer for one in outcomes_of(reasoner, trials, 3)]
            right = sum(answer == known[k] for k, answer in zip(chosen, answers, strict=True))
            assert effect.right.estimate == right / len(chosen)
            assert effect.num_problems == len(chosen)
    for name, thought in {(one.name, one.thought) for one in found[0].effects}:
        whole, *own = ([e for e in one.effects if (e.name, e.thought) == (name, thought)] for one in found)
        counted = [e for (e,) in filter(None, own)]
        assert whole[0].num_problems == sum(e.num_problems for e in counted)
        total = sum(e.right.estimate * e.num_problems for e in counted)
        assert whole[0].right.estimate * whole[0].num_problems == pytest.approx(total)
    json.dumps([one.as_dict() for one in found], allow_nan=False)


def test_a_model_without_thoughts_has_no_effects():
    problems = problems_of("text", 2)
    reasoner = make_graph_reasoner("text", problems, num_thoughts=0)
    assert effects_by_hops(reasoner, problems, max_new_tokens=2) == []
