"""Where texts begin and end: each end that a model states ends a text everywhere, and no end follows a question."""

import asyncio
import json
from pathlib import Path

import pytest
from making import make_backbone, make_card
from slow_loop import slow_generate
from tokenizers.processors import TemplateProcessing
from torch_engine import tiny_experiment

from coconut_ds import load_reasoner
from coconut_ds.data.encoding import describe_added
from coconut_ds.data.problem import Problem
from coconut_ds.data.report.statistics import make_report
from coconut_ds.data.report.text import render_report
from coconut_ds.data.token_table import cached_tokens
from coconut_ds.data.tokens import build_word_tokenizer, encode_questions, load_tokenizer, tokenize
from coconut_ds.evaluation.evaluator import Evaluator
from coconut_ds.evaluation.session import evaluate
from coconut_ds.files import seal
from coconut_ds.generation.prompter import Thoughts
from coconut_ds.generation.requests import Request
from coconut_ds.methods import METHODS
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.training.ingredients import run_ingredients
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings, Limits
from serve.models.pool import Models
from serve.requests.asking import Ask
from serve.requests.service import Service

QUESTIONS = ["1 + 2", "3", "2 + 2 =", "3 + 3", "1 ="]
LENGTH = 12


def free_tokens(reasoner: Reasoner, question: str) -> list[int]:
    """What the model writes if nothing ends its text, with everything computed again for each token."""
    prompt = reasoner.prompter.prompt(reasoner.prompter.encode([question])[0], Thoughts(2))
    request = Request(prompt, LENGTH, suppress=reasoner.backbone.markers.all())
    return slow_generate(reasoner.backbone.model, request, -1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[int], list[list[int]]]:
    """A checkpoint whose generation config states three ends, these ends, and the right tokens for each question."""
    folder = tmp_path_factory.mktemp("ends") / "model"
    backbone = make_backbone("llama", seed=4)
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    free = [free_tokens(load_reasoner(folder), question) for question in QUESTIONS]
    own, later = int(backbone.tokenizer.eos_token_id), sorted({token for one in free for token in one[2:]})
    ends = [later[0], own, later[-1]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    seal(folder)
    places = [next((i + 1 for i, token in enumerate(one) if token in ends), LENGTH) for one in free]
    expected = [one[:place] for one, place in zip(free, places, strict=True)]
    assert {one[-1] for one in expected} & {later[0], later[-1]}, "an end beside the tokenizer's own takes effect"
    return folder, [own, later[0], later[-1]], expected


def test_every_stated_end_ends_a_text_and_is_no_part_of_it(made):
    folder, ends, expected = made
    reasoner = load_reasoner(folder)
    assert list(reasoner.backbone.eos_ids) == ends
    answers = reasoner.generate(QUESTIONS, 2, max_new_tokens=LENGTH)
    assert [one.completion.tokens for one in answers] == expected
    for answer, tokens in zip(answers, expected, strict=True):
        ended = tokens[-1] in ends
        assert answer.completion.finish_reason == ("eos" if ended else "length")
        assert answer.text == reasoner.backbone.tokenizer.decode(tokens[:-1] if ended else tokens)
    names = ", ".join(reasoner.backbone.tokenizer.convert_ids_to_tokens(ends))
    assert reasoner.backbone.notes == [f"each of these tokens ends a text: {names}"]


def test_ends_are_kept_when_a_model_is_saved_again(made, tmp_path):
    folder, ends, _ = made
    load_reasoner(folder).save(tmp_path / "again")
    assert list(load_folder(tmp_path / "again").eos_ids) == ends


def test_an_evaluation_scores_a_text_that_another_end_ended(made, tmp_path, monkeypatch):
    """Such a text is wholly right if its tokens are, since training puts the tokenizer's own end there."""
    folder, ends, expected = made
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"question": q, "steps": [], "answer": "3"} for q in QUESTIONS]))
    gold = [[*tokens[:-1], ends[0] if tokens[-1] in ends else tokens[-1]] for tokens in expected]
    monkeypatch.setattr(
        Evaluator,
        "_expected",
        lambda self, problems, budgets, work: {(one.budget, one.problem): gold[one.problem] for one in work},
    )
    options = [f"checkpoint={folder}", f"data={data}", f"out={tmp_path / 'out'}", "n_thoughts=2"]
    predictions = evaluate(compose_eval_config([*options, f"max_new_tokens={LENGTH}"]))[0].predictions
    assert [one.num_tokens for one in predictions] == list(map(len, expected))
    assert [one.finish_reason == "eos" for one in predictions] == [tokens[-1] in ends for tokens in expected]
    assert all(one.wholly_right for one in predictions)


def test_the_server_ends_texts_as_the_reasoner_does(made):
    folder, ends, expected = made
    service = Service(Models(find_checkpoints([str(folder)]), EngineSettings(4), 64, 10**9), Limits())
    try:
        name = service.models.checkpoints.names[0]
        ask = Ask(name, tuple(QUESTIONS), n_thoughts=2, max_new_tokens=LENGTH)
        _, choices = asyncio.run(service.answer(ask))
    finally:
        service.close()
    assert [choice.completion.tokens for choice in choices] == expected
    assert [choice.finish_reason for choice in choices] == ["stop" if t[-1] in ends else "length" for t in expected]


def test_a_run_validates_with_all_ends_and_its_signature_knows_them(made, tmp_path):
    folder, ends, _ = made
    plain = tmp_path / "plain"
    load_reasoner(folder).save(plain)
    (plain / "generation_config.json").unlink()
    seal(plain)
    one, other = (tiny_experiment(f"run.load_model_path={place}", "model.tokenizer=null") for place in (folder, plain))
    assert list(one.evaluator().prompter.eos_ids) == ends
    assert one.describe().endswith(one.backbone.notes[0])
    assert list(other.evaluator().prompter.eos_ids) == ends[:1]
    key = "model.tokenizer_content"
    assert run_ingredients(one)[key] != run_ingredients(other)[key]


def with_template(template: str):
    """A word-level tokenizer with ``<s>`` and ``</s>`` around each text, as ``template`` says."""
    tokenizer = build_word_tokenizer([*QUESTIONS, "###"])
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(template, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize(
    ("template", "before", "notes"),
    [
        ("$A </s>", [], ["would add </s> after each question"]),
        ("<s> $A </s>", ["<s>"], ["adds <s> before each question", "would add </s> after each question"]),
        ("</s> $A", ["</s>"], ["adds </s> before each question"]),  # OPT's
        ("$A", [], []),
    ],
)
def test_no_token_comes_between_question_and_thoughts(tmp_path, template, before, notes):
    """In training, from a table of tokens or not, and at inference; and the user is told."""
    with_template(template).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    problems = [Problem(question, ("1 + 2",), "3") for question in QUESTIONS]
    asked = encode_questions(tokenizer, QUESTIONS)
    ids = tokenizer([f"{question}\n" for question in QUESTIONS], add_special_tokens=False)["input_ids"]
    assert asked == [[*tokenizer.convert_tokens_to_ids(before), *own] for own in ids]
    trained = tokenize(tokenizer, problems)
    assert [problem.question for problem in trained] == asked
    assert [problem.answer[-1] for problem in trained] == [tokenizer.eos_token_id] * len(problems)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([problem.as_dict() for problem in problems]))
    assert list(cached_tokens(path, tokenizer, tmp_path / "cache")) == trained
    found = describe_added(tokenizer)
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))
    report = render_report(make_report([("data.json", problems)], tokenizer, METHODS["coconut"]))
    assert all(note in report for note in found)
