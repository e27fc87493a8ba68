"""Answers after k thoughts, against the slow loop and single questions."""

import math

import pytest
import torch
from making_probing import QUESTIONS, make_reasoner, slow_score

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import encode_answers
from coconut_ds.formats import TEXT
from coconut_ds.probing.answers import answers_after, sweep
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import prepare


@pytest.fixture(scope="module")
def reasoner():
    return make_reasoner("llama")


def test_answers_after_k_thoughts_are_those_of_the_slow_loop(reasoner):
    known = ["3", "2", "1 + 3"]
    tokenizer = reasoner.backbone.tokenizer
    after = answers_after(reasoner, QUESTIONS[:3], known, max_new_tokens=4)
    cue, tails = encode_answers(tokenizer, known, TEXT)
    for k in range(4):
        plain = reasoner.generate(QUESTIONS[:3], force_text_after=k, max_new_tokens=4)
        for index, case in enumerate(prepare(reasoner, QUESTIONS[:3], k)):
            one, before = after[index][k], baselines_of(reasoner, [QUESTIONS[index]], k, max_new_tokens=4)[0]
            embeds = reasoner.loop.embed(torch.tensor([list(case.prompt.input_ids)])).detach().clone()
            embeds[0, case.prompt.first_thought : case.prompt.first_thought + k] = before.fed
            assert (one.num_thoughts, one.text, one.answer) == (k, plain[index].text, plain[index].answer)
            assert math.log(one.probability) == pytest.approx(slow_score(reasoner, embeds, before.tokens), abs=1e-3)
            forced = torch.cat([embeds, reasoner.loop.embed(torch.tensor([cue])).detach()], dim=1)
            expected = slow_score(reasoner, forced, tails[index])
            assert one.known_log_probability == pytest.approx(expected, abs=1e-3)
            made: list[int] = []
            for _ in range(4):
                logits = reasoner.backbone.model(inputs_embeds=forced, use_cache=False).logits[0, -1].detach().clone()
                logits[list(reasoner.backbone.markers.all())] = float("-inf")
                made.append(int(logits.argmax()))
                if made[-1] == tokenizer.eos_token_id:
                    break
                forced = torch.cat([forced, reasoner.loop.embed(torch.tensor([[made[-1]]]))], dim=1)
            assert one.forced == TEXT.extract(f"### {reasoner.prompter.text(made)}")
    problems = [Problem(q, (), a) for q, a in zip(QUESTIONS, [*known, after[0][3].answer, "1"], strict=False)]
    for k, point in enumerate(sweep(reasoner, problems, max_new_tokens=4)):
        column = [answers_after(reasoner, [p.question], [p.answer], [k], max_new_tokens=4)[0][0] for p in problems]
        assert (point.num_thoughts, point.num_problems) == (k, len(problems))
        assert point.right.estimate == sum(one.is_right for one in column) / len(column)
        assert point.forced_right.estimate == sum(one.is_forced_right for one in column) / len(column)
        mean = sum(one.known_log_probability for one in column) / len(column)
        assert point.known_log_probability.estimate == pytest.approx(mean, abs=1e-3)
