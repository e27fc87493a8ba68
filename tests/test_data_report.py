"""The report on problem files: counts checked by hand, layouts as in training, clear errors."""

import json
import re
import statistics
import struct
from pathlib import Path

import pytest
from launching import ROOT, environment, run
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.__main__ import main
from coconut_ds.data.problem import Problem
from coconut_ds.data.report.contents import Report
from coconut_ds.data.report.statistics import lay_out_pieces, make_report, summarize
from coconut_ds.data.report.text import render_report, shorten
from coconut_ds.data.tokens import add_markers, build_word_tokenizer, tokenize
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.layout import lay_out

TRAIN = [
    Problem("a b c =", ("a b", "b c"), "c"),
    Problem("b c =", ("b c",), "c"),
    Problem("a b c =", ("a b", "b c"), "1,000"),  # the first question again, with another answer
    Problem("c =", (), "c"),
    Problem("a b c a b c a =", ("a b", "b c", "c a b"), "# 1000"),  # graded as equal to the third problem's answer
    Problem("b =", (), "a b c"),
]
VALID = [
    Problem("new words here =", ("a b",), "c"),
    Problem("c =", ("a",), "c"),  # only its question is in TRAIN
    Problem("b c =", ("b c",), "c"),
    Problem("a b c =", ("a b", "b c"), "1,000"),
    Problem("a b c =", ("a b", "b c"), "1,000"),
]
FILES = [("train.json", TRAIN), ("valid.json", VALID), ("again.json", TRAIN)]


def texts(problems: list[Problem]) -> list[str]:
    return [text for problem in problems for text in (problem.question, *problem.steps, problem.answer)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that knows the words of TRAIN."""
    return build_word_tokenizer(texts(TRAIN))


@pytest.fixture
def report(tokenizer: PreTrainedTokenizerBase) -> Report:
    return make_report(FILES, tokenizer, METHODS["coconut"], c_thought=2)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_counts_of_a_file_are_those_made_one_by_one(report, tokenizer):
    for stats, (name, problems) in zip(report.files, FILES, strict=True):
        question = [ids(tokenizer, f"{p.question}\n") for p in problems]
        steps = [[token for step in p.steps for token in ids(tokenizer, f"{step}\n")] for p in problems]
        answer = [[*ids(tokenizer, f"### {p.answer}"), tokenizer.eos_token_id] for p in problems]
        whole = [q + s + a for q, s, a in zip(question, steps, answer, strict=True)]
        for part, tokens in (("question", question), ("steps", steps), ("answer", answer), ("whole", whole)):
            assert stats.lengths[part].tolist() == [len(each) for each in tokens]
        assert stats.name == name
        assert stats.num_steps.tolist() == [len(p.steps) for p in problems]
        assert stats.duplicate_questions == sum(
            any(p.question == earlier.question for earlier in problems[:i]) for i, p in enumerate(problems)
        )
        scored = [p.answer.split("#")[-1].replace(",", "").strip() for p in problems]
        assert stats.num_answers == len(set(scored))
        assert stats.frequent_count == max(map(scored.count, scored)) == scored.count(stats.frequent_answer)
        assert stats.longest == max(range(len(whole)), key=lambda i: len(whole[i]))
        assert stats.num_unknown == sum(row.count(tokenizer.unk_token_id) for row in whole)
    assert [stats.num_unknown for stats in report.files] == [0, 3, 0]
    # The unknown word counts as a token, and as a token that the first file does not have.
    assert [stats.num_new for stats in report.files] == [0, 3, 0]


def test_what_files_share_is_found_as_by_comparing_all_with_all(report):
    pairs = [(a, b) for b in range(3) for a in range(b)]
    by_names = {(pair.earlier, pair.later): pair for pair in report.overlaps}
    assert len(by_names) == len(report.overlaps) == len(pairs)
    for a, b in pairs:
        (earlier, there), (later, here) = FILES[a], FILES[b]
        found = [
            (i, next(j for j, other in enumerate(there) if other.question == problem.question), problem.question)
            for i, problem in enumerate(here)
            if any(other.question == problem.question for other in there)
        ]
        pair = by_names[earlier, later]
        assert (pair.size, pair.questions) == (len(here), len(found))
        assert pair.problems == sum(problem in there for problem in here)
        assert list(pair.first) == found[:2]
    assert (by_names["train.json", "valid.json"].questions, by_names["train.json", "valid.json"].problems) == (4, 3)


def test_the_summary_of_lengths(report):
    values = sorted(report.files[0].lengths["whole"].tolist())
    place = 0.95 * (len(values) - 1)
    high = values[int(place)] + (place - int(place)) * (values[int(place) + 1] - values[int(place)])
    assert summarize(report.files[0].lengths["whole"]) == pytest.approx(
        (values[0], statistics.median(values), statistics.mean(values), high, values[-1])
    )


def test_the_end_of_sequence_is_no_unknown_word(tokenizer):
    tokenizer.unk_token = tokenizer.eos_token
    stats = make_report([("train.json", TRAIN)], tokenizer, METHODS["coconut"]).files[0]
    assert stats.num_unknown == 0


@pytest.mark.parametrize("name", METHODS)
def test_pieces_are_the_layout_that_training_makes(name, tokenizer):
    method, spec = METHODS[name], CurriculumSpec(c_thought=2, max_latent_stage=2, tokens_per_epoch=2)
    problem = tokenize(tokenizer, [TRAIN[4]])[0]
    markers, _ = add_markers(tokenizer, pause=True)
    for stage in range(5):
        layout = lay_out(method, problem, stage, spec, markers)
        pieces = lay_out_pieces(method, problem, stage, spec, tokenizer)
        losses = [piece.loss for piece in pieces for _ in range(piece.num_tokens)]
        assert losses == [label != -100 for label in layout.labels]
        assert sum(p.num_tokens for p in pieces if p.role == "thought") == layout.num_thoughts
        replaced = {"<start>": markers.start, "<end>": markers.end, "●": markers.thought, "○": markers.pause}
        words = " ".join(p.text.replace("●", "● ").replace("○", "○ ").replace("⏎", " ⏎") for p in pieces).split()
        known = {**tokenizer.get_vocab(), **replaced, "⏎": ids(tokenizer, "\n")[0], "<eos>": tokenizer.eos_token_id}
        assert [known[word] for word in words] == list(layout.input_ids)


def test_steps_keep_their_numbers_where_others_equal_them(tokenizer):
    """With three equal steps, the tokens do not show which of them a method leaves."""
    problem = tokenize(tokenizer, [Problem("a =", ("b", "b", "b"), "c")])[0]
    numbers = {
        name: [p.number for p in lay_out_pieces(METHODS[name], problem, 1, spec, tokenizer) if p.role == "step"]
        for spec in [CurriculumSpec(1, 3)]
        for name in ("coconut", "coconut_reversed")
    }
    assert numbers == {"coconut": [2, 3], "coconut_reversed": [1, 2]}


def test_the_text_shows_the_counts(report):
    lines = [line.rstrip() for line in render_report(report).splitlines()]
    squeezed = [" ".join(line.split()) for line in lines]
    for expected in (
        "method: coconut, c_thought 2, max_latent_stage 3; trained on train.json its last stage is 3",
        "without steps 2 (33.3%) 0 2 (33.3%)",
        "question occurs earlier in the file 1 (16.7%) 1 (20.0%) 1 (16.7%)",
        "different answers 3 2 3",
        "most frequent answer c c c",
        "problems it is right for 3 (50.0%) 3 (60.0%) 3 (50.0%)",
        "unknown tokens 0 3 (5.3%) 0",
        "longest problem #4 #3 #4",
        "its positions at stage 0 25 16 25",
        "its positions at stage 3, the last 21 16 21",
        "valid.json 3 5.0 4.4 5.0 5",  # questions
        "3 1 (16.7%) ████ 0 1 (16.7%) ████",
        "valid.json train.json 4 (80.0%) 3 (60.0%)",
        "valid.json #1 has the question of train.json #3: c =",
        "#4: 3 steps, 23 tokens",
        "stage 2: 23 positions, 4 thoughts, loss on 8",
        "a b c a b c a =⏎ <start> ●●●● <end> ⟦c a b⏎ ### # 1000 <eos>⟧",
    ):
        assert expected in squeezed


def test_blank_steps_missing_answers_and_altered_answers_are_reported(tokenizer):
    problems = [*TRAIN, Problem("b =", (), "c", num_blank_steps=2), Problem("c =", ("a",), "")]
    text = render_report(make_report([("one.json", TRAIN), ("two.json", problems)], tokenizer, METHODS["coconut"]))
    squeezed = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "without steps 2 (33.3%) 3 (37.5%)",
        "with blank steps, left out 0 1 (12.5%)",
        "without an answer 0 1 (12.5%)",
    ):
        assert expected in squeezed
    assert 'warning: one.json: item 4, key \'answer\': scoring reads "1000" in "# 1000"; the answers of 1 of 6' in text
    assert "blank" not in render_report(make_report([("one.json", TRAIN)], tokenizer, METHODS["coconut"]))


def test_long_questions_lose_their_middle_and_control_characters():
    assert shorten("one two three four five six", 14, " … 6 … ") == "one … 6 … six"
    assert shorten("x" * 100, 10) == "xxxxx … xxxxx"
    assert shorten("\x1b[31mred\ud800\nnext", 40) == "�[31mred�⏎next"


def write(path: Path, problems: list[Problem]) -> Path:
    path.write_text(json.dumps([problem.as_dict() for problem in problems]), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_command_prints_and_draws(tmp_path):
    files = [write(tmp_path / "train.json", TRAIN), write(tmp_path / "valid.json", VALID)]
    picture = tmp_path / "new" / "folder" / "report.png"
    done = run(["-m", "coconut_ds.data", *files, "--png", picture, "--examples", "2"], environment(), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vocabulary: ")
    assert done.stdout.count(" tokens\n  stage 0") == 2
    assert done.stdout.endswith(f"\n{picture}\n")
    # A tokenizer built from the files' own texts knows all words.
    assert re.search(r"^unknown tokens +0 +0$", done.stdout, flags=re.MULTILINE)
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 < width < 2500
    assert 800 < height < 2500
    assert len(content) > 30_000


def test_a_picture_of_other_files_or_options_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coconut_ds.data.report.picture.DPI", 20)
    files = [str(write(tmp_path / "train.json", TRAIN)), str(write(tmp_path / "valid.json", VALID))]

    def found() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*.png")}

    assert main([*files, "--examples", "0"]) == 0
    kept = found()
    assert main([*files, "--examples", "0", "--method", "cot"]) == 0
    assert kept.items() < found().items()
    assert main([*files, "--examples", "0", "--png", "a.png"]) == 0
    assert main([*files, "--examples", "0", "--png", "a.png"]) == 0
    kept = found()
    capsys.readouterr()
    assert main([files[1], "--examples", "0", "--png", "a.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, found()) == ("", kept)
    assert err.startswith("error: --png a.png: exists made from something else, which differs in files")
    assert "add --overwrite to replace it" in err
    assert main([files[1], "--examples", "0", "--png", "a.png", "--overwrite"]) == 0
    assert found() != kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/none.json"], "none.json: no such file"),
        (["{}/broken.json"], "broken.json: broken JSON at line 1"),
        (["{}/good.json", "--method", "magic"], "argument --method: invalid choice: 'magic'"),
        (["{}/good.json", "--tokenizer", "{}/none"], "--tokenizer={}/none: no such folder"),
        (["{}/good.json", "--c-thought", "0"], "argument --c-thought: 0 is less than 1"),
        (["{}/good.json", "--png", "{}/good.json/report.png"], "good.json"),
    ],
)
def test_a_users_mistake_is_reported_in_one_line(arguments, said, tmp_path, capsys):
    write(tmp_path / "good.json", TRAIN)
    (tmp_path / "broken.json").write_text('[{"question": ', encoding="utf-8")
    try:
        code = main([argument.format(tmp_path) for argument in ["--png", "{}/report.png", *arguments]])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.format(tmp_path) in err
