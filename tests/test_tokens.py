"""Text and tokens: the word tokenizer restores the text, markers are set by id, a missing tokenizer is one error."""

import copy
import ctypes
import gc
import json
import resource
import socket
import time
from pathlib import Path

import encoding_threads
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from imports import ROOT
from making_tokenizers import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coconut_ds import hub
from coconut_ds.data.encoding import encode
from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import (
    MARKERS,
    add_markers,
    build_word_tokenizer,
    decode,
    encode_answers,
    encode_questions,
    load_tokenizer,
    question_places,
    tokenize,
)
from coconut_ds.errors import ModelError
from coconut_ds.formats import FORMATS, SYMBOLIC, TEXT, is_correct
from coconut_ds.hub import load_by_name
from coconut_ds.methods.base import MarkerIds

PROBLEMS = [
    Problem(
        "Every shumpus is a yumpus. Tom is a shumpus. Is Tom a gorpus or a bompus?",
        ("Tom is a shumpus.", "Every shumpus is a yumpus.", "Every yumpus is a bompus."),
        "Tom is a bompus.",
    ),
    Problem("3 + 5 + 2 + 6 =", ("8", "0", "6"), "6"),
    Problem("bca * acb * cab =", ("bac", "acb"), "acb"),
    Problem("Is Tom a bompus?", (), "Tom is a bompus."),
]
TEXTS = [text for problem in PROBLEMS for text in (problem.question, *problem.steps, problem.answer)]
WORDS = ["Tom", "shumpus", "yumpus", "bca", "3", "+", "=", "###"]


def written(problem: Problem) -> str:
    """The text that a correct model generates."""
    return "".join(f"{step}\n" for step in problem.steps) + f"### {problem.answer}"


STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of memory that this process needs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return decode(tokenizer, ids, MarkerIds(-1, -2, -3), [tokenizer.eos_token_id])


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_word_tokenizer(TEXTS)


@pytest.fixture
def with_special(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that begins a text with a special token, as Llama's does."""
    begin = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", special_tokens=[begin])
    return tokenizer


def test_words_and_newlines_are_tokens_and_every_text_comes_back(tokenizer: PreTrainedTokenizerBase) -> None:
    names = tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "Is Tom a bompus?\n8\n\n### 6"))
    assert names == ["Is", "Tom", "a", "bompus", "?", "\n", "8", "\n", "\n", "###", "6"]
    for text in (*TEXTS, *(f"{problem.question}\n{written(problem)}" for problem in PROBLEMS)):
        assert text_of(tokenizer, ids_of(tokenizer, text)) == text


SHARED = build_word_tokenizer([*TEXTS, *WORDS])
sentences = st.builds(
    lambda words, mark: " ".join(words) + mark,
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    st.sampled_from(["", ".", "?"]),
)


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.lists(sentences, max_size=3).map(" ".join), max_size=4), end=st.sampled_from(["", "\n", "\n\n"])
)
def test_lines_of_known_words_come_back_as_they_were(lines: list[str], end: str) -> None:
    """Including empty lines, also at the beginning."""
    text = "\n".join(lines) + end
    assert text_of(SHARED, ids_of(SHARED, text)) == text


def test_unknown_words_become_one_token_that_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    assert text_of(tokenizer, ids_of(tokenizer, "Tom is a zumpus.")) == "Tom is a <|unknown|>."
    assert ids_of(tokenizer, "zumpus") == ids_of(tokenizer, "quux") == [tokenizer.unk_token_id]


def test_numbers_with_marks_inside_are_scored_as_right() -> None:
    problem = Problem("How much?", ("<<2.5*400=1,000>>", "0.5"), "1,000")
    tokenizer = build_word_tokenizer([problem.question, *problem.steps, problem.answer])
    generated = text_of(tokenizer, ids_of(tokenizer, written(problem)))
    assert is_correct(generated, problem.answer), generated


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    markers, _ = add_markers(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert add_markers(loaded) == (markers, [])
    assert tokenize(loaded, PROBLEMS) == tokenize(tokenizer, PROBLEMS)
    for problem in PROBLEMS:
        ids = [markers.start, *ids_of(loaded, written(problem)), markers.thought]
        assert decode(loaded, ids, markers, [loaded.eos_token_id]) == written(problem)


def test_markers_are_added_once_in_the_order_of_the_reference(tokenizer: PreTrainedTokenizerBase) -> None:
    size = len(tokenizer)
    markers, missing = add_markers(tokenizer)
    assert (markers.start, markers.end, markers.thought) == (size, size + 1, size + 2)
    assert missing == list(MARKERS) == ["<|start-latent|>", "<|end-latent|>", "<|latent|>"]
    assert add_markers(tokenizer) == (markers, [])
    assert add_markers(tokenizer) == (markers, [])
    assert len(tokenizer) == size + 3


def test_only_markers_that_are_missing_are_added(tokenizer: PreTrainedTokenizerBase) -> None:
    size = len(tokenizer)
    tokenizer.add_tokens(["<|latent|>"], special_tokens=True)
    markers, missing = add_markers(tokenizer)
    assert missing == ["<|start-latent|>", "<|end-latent|>"]
    assert (markers.thought, markers.start, markers.end) == (size, size + 1, size + 2)


def test_a_marker_that_a_text_spells_out_is_not_the_marker(tokenizer: PreTrainedTokenizerBase) -> None:
    """Otherwise a question could contain a thought's token where there is no thought."""
    markers, _ = add_markers(tokenizer)
    spelled = "".join(MARKERS)
    problem = tokenize(tokenizer, [Problem(f"Tom {spelled}", (spelled,), f"{spelled} Tom")])[0]
    assert not {*problem.question, *problem.steps[0], *problem.answer} & set(markers.all())


def test_tokenizing_in_batches_equals_encoding_one_by_one(with_special: PreTrainedTokenizerBase) -> None:
    eos = with_special.eos_token_id
    problems = [*PROBLEMS, *reversed(PROBLEMS)]
    for problem, tokens in zip(problems, tokenize(with_special, problems), strict=True):
        assert tokens.question == with_special.encode(f"{problem.question}\n")
        assert tokens.question == [eos, *ids_of(with_special, f"{problem.question}\n")], "special tokens here alone"
        assert list(tokens.steps) == [ids_of(with_special, f"{step}\n") for step in problem.steps]
        assert tokens.answer == [*ids_of(with_special, f"### {problem.answer}"), eos]
    questions = [problem.question for problem in problems]
    assert encode_questions(with_special, questions) == [tokens.question for tokens in tokenize(with_special, problems)]
    assert tokenize(with_special, []) == []


def test_decoding_drops_markers_by_id_and_all_from_the_end_on(tokenizer: PreTrainedTokenizerBase) -> None:
    markers, _ = add_markers(tokenizer)
    ids, end = ids_of(tokenizer, "Tom is a bompus."), tokenizer.eos_token_id
    mixed = [markers.start, ids[0], markers.thought, *ids[1:], markers.end, end, *ids, end]
    assert decode(tokenizer, mixed, markers, [end]) == "Tom is a bompus."
    assert decode(tokenizer, [end, *ids], markers, [end]) == ""
    assert decode(tokenizer, ids, MarkerIds(ids[1], -1, -2), [end]) == "Tom a bompus.", "by id, not by name"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's address is a port on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
def test_a_tokenizer_that_cannot_be_loaded_is_one_error_at_once() -> None:
    began = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        load_tokenizer("nobody/nothing")
    assert time.perf_counter() - began < 5
    message = str(caught.value)
    assert message.startswith("model.tokenizer=nobody/nothing: no such folder, not in the local cache, and the hub ")
    assert "set model.tokenizer to a local folder, or model.tokenizer=dataset" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, "{}", "no json"], ids=["empty-folder", "empty-file", "broken-file"])
def test_a_folder_that_holds_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(tmp_path))
    assert f"model.tokenizer={tmp_path}: this folder cannot be loaded" in str(caught.value)
    assert "set model.tokenizer to a local folder" in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no end-of-sequence token; set a tokenizer that has one"):
        load_tokenizer(str(tmp_path))


def test_a_name_that_the_hub_refuses_is_one_error_with_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, local_files_only: bool = False) -> str:
        raise OSError("not cached" if local_files_only else "gated\nsecond line")

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    with pytest.raises(ModelError) as caught:
        load_by_name(load, "a/b", "model.model_id", "do this")
    assert str(caught.value) == "model.model_id=a/b: could not be loaded from the hub (gated); do this"


def test_what_is_cached_is_taken_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, local_files_only: bool = False) -> tuple[str, bool]:
        return name, local_files_only

    def reachable() -> bool:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(hub, "hub_reachable", reachable)
    assert load_by_name(load, "a/b", "model.model_id", "") == ("a/b", True)


@pytest.mark.parametrize("form", [TEXT, SYMBOLIC])
def test_cue_and_rest_are_the_answer_as_it_is_trained_on(form):
    tokenizer = build_word_tokenizer(["1 2 3 ### [A] ab c."])
    problems = [Problem("1", (), answer) for answer in ("3", "ab c.", "1 2")]
    cue, tails = encode_answers(tokenizer, [problem.answer for problem in problems], form)
    for problem, tail in zip(tokenize(tokenizer, problems, form), tails, strict=True):
        assert [*problem.cue, *problem.answer] == [*cue, *tail]
    assert tokenizer.decode(cue) == form.answer_start.strip()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", ["lone_spaces", "llama", "words"])
def test_every_token_of_a_question_has_its_place(form, kind) -> None:
    """Also where a format leaves spaces out; and without the token that the tokenizer adds after a text."""
    tokenizer = copy.deepcopy(tokenizers()[kind])
    end = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A <|endoftext|>", special_tokens=[end])
    for question in ("the cat", "  the  cat   sat.  ", "the    cat sat. \n", " ", ""):
        (ids,), found = encode_questions(tokenizer, [question], form), question_places(tokenizer, question, form)
        assert len(ids) == len(found)
        texts = [question[place.start : place.end] for place in found]
        assert "".join("".join(texts).split()) == "".join(question.split())
        for token, text in zip(ids, texts, strict=True):
            if "cat" in text:
                assert "cat" in tokenizer.decode([token])


def test_the_plugin_of_vllm_encodes_questions_as_training_does(monkeypatch) -> None:
    """In each of its formats; it is a distribution of its own, so it has code of its own."""
    monkeypatch.syspath_prepend(ROOT / "serve" / "vllm")
    from coconut_vllm.card import FORMATS as SERVED
    from coconut_vllm.prompts import Questions

    tokenizer = copy.deepcopy(tokenizers()["lone_spaces"])
    add_markers(tokenizer)
    questions = ["the cat", "  the  cat   sat.  ", "\n the    cat <|latent|> \n", " ", ""]
    for name in SERVED:
        plugin = Questions(tokenizer, name)
        assert [plugin.encode(one) for one in questions] == encode_questions(tokenizer, questions, FORMATS[name])


def test_threads_that_share_a_tokenizer_do_not_change_each_others_encodings() -> None:
    """A short form of ``python tests/encoding_threads.py --encodings 1000000``."""
    result = encoding_threads.run(4_000)
    assert (result["encodings"], result["wrong"]) == (4_000, 0)
    assert result["other_calls"]


def test_a_tokenizer_that_changes_encodes_as_changed(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also after it has encoded, and with each setting."""
    name, eos = "<|latent|>", tokenizer.eos_token_id
    before = encode(tokenizer, [name])
    add_markers(tokenizer)
    thought = tokenizer.convert_tokens_to_ids(name)
    assert encode(tokenizer, [name, f"Tom {name}"], names_are_tokens=True)[0] == [thought]
    assert encode(tokenizer, [name]) == before != [[thought]]
    begin = ("<|endoftext|>", eos)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", special_tokens=[begin])
    assert encode(tokenizer, ["Tom"], special=True) == [[eos, *ids_of(tokenizer, "Tom")]]
    tokenizer.add_tokens(["zumpus"])
    assert encode(tokenizer, ["zumpus"]) == [[tokenizer.convert_tokens_to_ids("zumpus")]]


@pytest.mark.skipif(not STATM.exists(), reason="this system does not tell the memory of a process in /proc")
@pytest.mark.parametrize("alone", [True, False])
def test_tokenizers_that_no_longer_exist_keep_no_memory(alone: bool) -> None:
    """A server that loads one checkpoint after another must not keep the words of each: 15 KB per round."""
    bpe = models.BPE({letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}, [])
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    content, texts = backend.to_str(), [f"the word{index}" for index in range(64)]

    def grown(rounds: int) -> int:
        """Bytes by which encoding with new tokenizers makes the process grow."""
        before = resident()
        for _ in range(rounds):
            encode(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content)), texts, alone=alone)
        return resident() - before

    grown(20)
    assert grown(400) < 2_000_000
