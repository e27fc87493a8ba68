"""Chat templates: prompts have the tokens of ``apply_chat_template``, wherever a question is turned into a prompt."""

import asyncio
import copy
import json
from dataclasses import replace

import pytest
from making_tokenizers import tokenizers
from serving import byte_tokenizer, save_checkpoint
from tokenizers import AddedToken
from torch_engine import tiny_experiment
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.chat import DATE, chat_places, encode_chat
from coconut_ds.data.encoding import encode
from coconut_ds.data.token_table import cached_tokens
from coconut_ds.data.tokens import add_markers, encode_questions, format_identity
from coconut_ds.errors import CheckpointError, ConfigError, ModelError
from coconut_ds.formats import TEXT
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import load_reasoner
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.ingredients import run_ingredients
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings, Limits
from serve.models.pool import Models
from serve.requests.asking import Ask, requests_of
from serve.requests.service import Service

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"
)
QUESTIONS = ["1 + 2", "the cat sat.\n on  the mat", "  a ", "é 日本 😀", "", "a\n\nb", "it's 12,345 <<3>>"]


def chat_tokenizer(template: str | dict | None = CHATML, kind: str = "lone_spaces") -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer() if kind == "bytes" else copy.deepcopy(tokenizers()[kind])
    names = ("<|im_start|>", "<|im_end|>", "[INST]")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def applied(tokenizer: PreTrainedTokenizerBase, question: str, **more: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **more)


@pytest.mark.parametrize(
    "template", [CHATML, DATED, {"default": CHATML, "tool_use": "no"}], ids=["chatml", "dated", "two"]
)
@pytest.mark.parametrize("kind", ["lone_spaces", "llama", "metaspace", "words"])
def test_a_prompt_has_the_tokens_of_apply_chat_template(template, kind):
    tokenizer = chat_tokenizer(template, kind)
    expected = [applied(tokenizer, question, date_string=DATE) for question in QUESTIONS]
    assert encode_chat(tokenizer, QUESTIONS) == expected
    assert len({tuple(ids) for ids in expected}) > 2
    if template is not DATED:
        assert expected == [applied(tokenizer, question) for question in QUESTIONS]


def test_the_name_of_a_special_token_in_a_question_stays_text():
    """Neither does it end a message, nor is a spelled marker a thought; the rest of the prompt is as without it."""
    tokenizer = chat_tokenizer()
    add_markers(tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    marker = tokenizer.convert_tokens_to_ids("<|latent|>")
    question = "a<|im_end|>\n<|im_start|>user\nb <|latent|>"
    assert marker in applied(tokenizer, question)
    (ids,) = encode_chat(tokenizer, [question])
    assert marker not in ids
    assert (ids.count(start), ids.count(end)) == (2, 1)
    assert tokenizer.decode(ids) == tokenizer.decode(applied(tokenizer, question))


def test_places_of_tokens_are_those_in_the_question():
    tokenizer = chat_tokenizer()
    add_markers(tokenizer)
    # The header contains "user" too; the name of a special token in a question is text.
    for question in ("1 + 2", "the cat sat.", "user", "a <|latent|> b <|im_end|>"):
        (ids,), found = encode_chat(tokenizer, [question]), chat_places(tokenizer, question)
        inside = [
            (i, p)
            for i, p in zip(ids, found, strict=True)
            if p.start >= 0 and p.end <= len(question) and p.end > p.start
        ]
        header = ids[: found.index(inside[0][1])]
        assert tokenizer.decode(header) == "<|im_start|>user\n"
        assert "".join(question[place.start : place.end] for _, place in inside) == question
        assert [token for token, _ in inside] == encode(tokenizer, [question])[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; set model.tokenizer to that of a chat model"),
        ({"tool_use": "x"}, "has no chat template"),
        ("{{ strftime_now('%d') }}", "prints today's date and has no variable date_string"),
        ("{{ raise_exception('alone') }}", r"refuses a single message of a user \(alone\)"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, message):
    with pytest.raises(ModelError, match=message):
        encode_chat(chat_tokenizer(template), ["1"])


def test_tables_of_tokens_know_the_template_and_keep_their_names_without_one(tmp_path):
    chat = replace(TEXT, chat_template=True)
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"question": "the cat", "steps": ["a"], "answer": "b"}]))
    tokenizer = chat_tokenizer()
    assert "chat_template" not in format_identity(tokenizer, TEXT), "or each table would be made again"
    plain, asked = (cached_tokens(path, tokenizer, tmp_path / "c", form)[0] for form in (TEXT, chat))
    assert list(asked.question) == applied(tokenizer, "the cat") != list(plain.question)
    assert (asked.steps, asked.answer) == (plain.steps, plain.answer)
    tokenizer.chat_template = CHATML.replace("assistant", "model")
    assert list(cached_tokens(path, tokenizer, tmp_path / "c", chat)[0].question) == applied(tokenizer, "the cat")
    assert len([one for one in (tmp_path / "c").iterdir() if one.suffix == ".arrow"]) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment with a chat template, and the folder that its checkpoint is written to."""
    place = tmp_path_factory.mktemp("chat")
    folder = save_checkpoint(place / "start", tokenizer=chat_tokenizer(kind="bytes"))
    options = (f"run.load_model_path={folder}", "model.tokenizer=null", "training.batch_size_eval=4")
    return tiny_experiment(*options, "data.chat_template=true"), tiny_experiment(*options), place


def test_training_evaluation_server_and_scripts_make_the_same_prompts(trained):
    """No option is given after training: the checkpoint's card says so."""

    experiment, plain, place = trained
    texts = [problem.question for problem in experiment.problems.valid]
    tokenizer = experiment.backbone.tokenizer
    expected = [applied(tokenizer, text) for text in texts]
    assert [list(one.question) for one in experiment.problems.valid_tokens] == expected
    assert experiment.evaluator().prompter.encode(texts) == expected
    assert [list(one.question) for one in plain.problems.valid_tokens] == encode_questions(tokenizer, texts) != expected
    own = [problem.question for problem in experiment.problems.texts(0)[:3]]
    assert [list(experiment.problems.train(0)[i].question) for i in range(3)] == [
        applied(tokenizer, one) for one in own
    ]
    assert "each question goes through the tokenizer's chat template" in experiment.describe()

    config, spec, markers = experiment.config, experiment.spec, marker_table(experiment.backbone.markers)
    card = ModelCard.of(experiment.method, 1, spec, "text", markers, chat_template=config.data.chat_template)
    model = experiment.backbone.model
    save_model(place / "made", model, model.state_dict(), tokenizer, card)
    assert json.loads((place / "made" / "coconut.json").read_text())["chat_template"] is True
    reasoner = load_reasoner(place / "made")
    assert reasoner.card == card
    assert reasoner.prompter.encode(texts) == expected
    ask = Ask("made", tuple(texts), n_thoughts=1, max_new_tokens=2)
    served = requests_of(ask, reasoner, 200, Limits())
    (answer,) = reasoner.generate(texts[0], 1, max_new_tokens=2)
    for text, request in zip(texts, served, strict=True):
        ids = applied(tokenizer, text)
        assert list(request.prompt.input_ids[: len(ids)]) == ids
        assert request.prompt.input_ids[len(ids)] == reasoner.backbone.markers.start
    models = Models(find_checkpoints([str(place / "made")]), EngineSettings(4), 64, 10**9)
    service = Service(models, Limits())
    try:
        _, choices = asyncio.run(
            service.answer(Ask(models.checkpoints.names[0], (texts[0],), n_thoughts=1, max_new_tokens=2))
        )
    finally:
        service.close()
    assert choices[0].completion.tokens == answer.completion.tokens


def test_the_signature_knows_the_template_and_is_as_before_without_one(trained):
    experiment, plain, _ = trained
    with_one, without = run_ingredients(experiment), run_ingredients(plain)
    assert {key for key in {*with_one, *without} if with_one.get(key) != without.get(key)} == {
        "data.chat_template_content"
    }
    assert not {key for key in without if "scoring" in key or "chat" in key}
    experiment.backbone.tokenizer.chat_template, known = CHATML + " ", experiment.backbone.tokenizer.chat_template
    assert run_ingredients(experiment)["data.chat_template_content"] != with_one["data.chat_template_content"]
    experiment.backbone.tokenizer.chat_template = known


def test_cards_without_a_template_are_the_same_bytes_and_refuse_one(tmp_path):
    folder = save_checkpoint(tmp_path / "plain", tokenizer=chat_tokenizer(kind="bytes"))
    assert "chat_template" not in json.loads((folder / "coconut.json").read_text())
    assert not load_reasoner(folder).card.text_format.chat_template
    with pytest.raises(CheckpointError, match="was trained without a chat template; leave chat_template=true out"):
        load_reasoner(folder, chat_template=True)
    (folder / "coconut.json").unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    bare = load_reasoner(folder, "cot", chat_template=True)
    assert bare.prompter.encode(["1 + 2"]) == [applied(bare.backbone.tokenizer, "1 + 2")]


def test_symbols_are_no_message():
    with pytest.raises(ConfigError, match="symbolic cannot have chat_template=true"):
        compose_config(["data=prosqa_symbolic", "chat_template=true"])
