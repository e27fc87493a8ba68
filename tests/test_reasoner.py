"""``load_reasoner``: a checkpoint answers questions as it was trained to, or as the arguments say."""

import subprocess
import sys

import pytest
import torch
from making import make_backbone, make_card
from slow_loop import slow_embeddings, slow_generate
from transformers import AutoModelForCausalLM, AutoTokenizer

import coconut_ds
from coconut_ds import load_reasoner
from coconut_ds.data.tokens import encode_questions
from coconut_ds.errors import CheckpointError, DataError
from coconut_ds.generation.requests import Request
from coconut_ds.methods import METHODS
from coconut_ds.methods.layout import lay_out_prompt
from coconut_ds.model import precision
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import Reasoner

QUESTIONS = ["1 + 2", "3", "2 + 2 ="]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    backbone = make_backbone("llama", seed=4)
    place = tmp_path_factory.mktemp("reasoner") / "model"
    save_model(place, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    return place


@pytest.fixture(scope="module")
def reasoner(folder) -> Reasoner:
    return load_reasoner(folder)


def test_it_is_shown_in_one_line(reasoner):
    count = sum(parameter.numel() for parameter in reasoner.backbone.model.parameters())
    text = f"coconut, stage 3, 6 thoughts, {count:,} parameters, float32, cpu)"
    assert repr(reasoner) == f"Reasoner({reasoner.name!r}: {text}"


def slow(reasoner: Reasoner, question: str, count: int, length: int) -> list[int]:
    backbone = reasoner.backbone
    ids = encode_questions(backbone.tokenizer, [question])[0]
    prompt = lay_out_prompt(METHODS["coconut"], ids, count, backbone.markers)
    request = Request(prompt, length, suppress=backbone.markers.all())
    return slow_generate(backbone.model, request, backbone.tokenizer.eos_token_id)


def test_answers_are_those_of_the_slow_loop(reasoner):
    """The checkpoint's number of thoughts unless another is requested; text may be forced earlier."""
    for asked, count in (({}, 6), ({"n_thoughts": 2}, 2), ({"force_text_after": 1}, 1), ({"n_thoughts": 0}, 0)):
        answers = reasoner.generate(QUESTIONS, max_new_tokens=5, **asked)
        assert [a.completion.tokens for a in answers] == [slow(reasoner, q, count, 5) for q in QUESTIONS]
        assert [a.completion.num_thoughts for a in answers] == [count] * 3
        assert [a.question for a in answers] == QUESTIONS
    assert reasoner.generate("3", max_new_tokens=5)[0].text == answers_of(reasoner, "3")


def answers_of(reasoner: Reasoner, question: str) -> str:
    eos = reasoner.backbone.tokenizer.eos_token_id
    return reasoner.backbone.tokenizer.decode([t for t in slow(reasoner, question, 6, 5) if t != eos])


def test_thoughts_can_be_kept_and_decoded(reasoner):
    answer = reasoner.generate("1 + 2", n_thoughts=3, max_new_tokens=2, keep_thoughts=True)[0]
    backbone = reasoner.backbone
    prompt = lay_out_prompt(METHODS["coconut"], encode_questions(backbone.tokenizer, ["1 + 2"])[0], 3, backbone.markers)
    first = prompt.first_thought
    expected = slow_embeddings(backbone.model, prompt)[0, first : first + 3]
    torch.testing.assert_close(answer.thoughts, expected.detach(), rtol=1e-4, atol=1e-5)
    decoded = reasoner.decode_thoughts(answer, top_k=2)
    best = backbone.model.lm_head(expected).softmax(-1).max(-1).values.tolist()
    assert [thought.probabilities[0] for thought in decoded] == pytest.approx(best, rel=1e-4)
    with pytest.raises(ValueError, match="keep_thoughts=True"):
        reasoner.decode_thoughts(reasoner.generate("3", max_new_tokens=1)[0])


def test_samples_differ_and_repeat_themselves(reasoner):
    options = {"temperature": 1.5, "max_new_tokens": 8, "n_thoughts": 1, "seed": 7}
    drawn = reasoner.generate(QUESTIONS[:2], samples=3, **options)
    assert [a.question for a in drawn] == ["1 + 2"] * 3 + ["3"] * 3
    assert len({tuple(a.completion.tokens) for a in drawn[:3]}) == 3
    again = reasoner.generate(QUESTIONS[:2], samples=3, batch_size=1, **options)
    assert [a.completion.tokens for a in again] == [a.completion.tokens for a in drawn]


def test_a_stop_string_is_cut_off(reasoner):
    whole = reasoner.generate("1 + 2", max_new_tokens=6)[0]
    stop = whole.text[2:4]
    cut = reasoner.generate("1 + 2", max_new_tokens=6, stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.completion.finish_reason == "stop"


def test_wrong_requests_say_what_is_possible(reasoner, folder, tmp_path):
    with pytest.raises(DataError, match=r"problem 1: its prompt has \d+ positions.*context is 96"):
        reasoner.generate(["1", "1 " * 99])
    with pytest.raises(DataError, match="min_thoughts=9: expected at most 6"):
        reasoner.generate("1", min_thoughts=9)
    with pytest.raises(CheckpointError, match="method=nothing: unknown; expected one of coconut"):
        load_reasoner(folder, method="nothing")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_reasoner(tmp_path / "none")


def test_without_thoughts_a_folder_works_with_plain_transformers(reasoner, folder):
    """Without thoughts a folder is a plain model: transformers' ``generate`` writes the same text as ours."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("1 + 2\n", return_tensors="pt").input_ids
    markers = [[marker] for marker in reasoner.backbone.markers.all()]
    settings = {"do_sample": False, "max_new_tokens": 5, "bad_words_ids": markers, "pad_token_id": 0}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    plain = Reasoner(reasoner.backbone, reasoner.card.__class__("no_cot", 0, 0, 0, 0, {}))
    assert plain.generate("1 + 2", max_new_tokens=5)[0].completion.tokens == made[0, ids.shape[1] :].tolist()


def test_a_plain_model_says_how_it_thinks_by_its_arguments(folder, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"no coconut\.json.*set method=cot, or another and n_thoughts"):
        load_reasoner(tmp_path)
    with pytest.raises(CheckpointError, match="set n_thoughts too"):
        load_reasoner(tmp_path, method="coconut")
    assert load_reasoner(tmp_path, method="cot").card.num_thoughts == 0
    with pytest.raises(DataError, match="method=cot does not think"):
        load_reasoner(tmp_path, method="cot").generate("1", n_thoughts=2)
    thinking = load_reasoner(tmp_path, method="coconut", n_thoughts=2)
    answer = thinking.generate("1", max_new_tokens=2)[0]
    assert answer.completion.num_thoughts == 2
    thinking.save(tmp_path / "saved")
    again = load_reasoner(tmp_path / "saved").generate("1", max_new_tokens=2)[0]
    assert (again.text, again.completion.num_thoughts) == (answer.text, 2)


def test_the_package_is_light_until_a_model_is_asked_for():
    # An import of torch fails here, which shows when it happens without spending the seconds that it takes.
    script = "import sys; sys.modules['torch'] = None; import coconut_ds; print('light'); coconut_ds.load_reasoner"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "light\n")
    assert "import of torch halted" in done.stderr.splitlines()[-1]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        coconut_ds.nothing  # noqa: B018


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_that_is_slow_at_bf16_computes_in_fp32_with_rounded_weights(folder, monkeypatch, native):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: native)
    exact, rounded = load_reasoner(folder), load_reasoner(folder, dtype=torch.bfloat16, device="cpu")
    held = torch.bfloat16 if native else torch.float32
    pairs = zip(exact.loop.parameters(), rounded.loop.parameters(), strict=True)
    for there, here in pairs:
        assert here.dtype == held
        assert torch.equal(here.float(), there.bfloat16().float())
    assert rounded.precision.startswith("bfloat16")
    assert ("computed in float32" in rounded.precision) is not native
