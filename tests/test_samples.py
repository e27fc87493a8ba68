"""Several samples of a problem: noise in their thoughts, pass@k, coverage, majority vote."""

import json
import signal
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import pytest
from held_evaluation import HELD_AT
from launching import environment, start
from making_evaluations import arguments_of, count_kept, make_place, predictions, run_evaluation
from waiting import wait_until

from coconut_ds.distributed.ranks import ALONE
from coconut_ds.evaluate import main
from coconut_ds.evaluation.evaluator import Work
from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.evaluation.samples import numbers_of_samples, pass_at_k, sample_scores, vote
from coconut_ds.evaluation.session import evaluate, evaluation_job
from coconut_ds.evaluation.statistics import mean_of, wilson
from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.probing.answers import answers_after
from coconut_ds.probing.cases import Sample
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.reasoner import load_reasoner
from coconut_ds.scoring import EXACT, scoring_of
from coconut_ds.settings.compose import compose_eval_config

HELD = Path(__file__).parent / "held_evaluation.py"
PROBLEMS = 11
"""A prime number, so that two ranks have different numbers of problems."""
NOISE = ["thought_noise=gaussian", "thought_sigma=1", "samples=5", "seed=4", "n_thoughts=2"]
QUESTION = " ".join(["1", "2", "3", "+", "="] * 4)


def prediction(index: int, sample: int, extracted: str, correct: bool | None) -> Prediction:
    answer = None if correct is None else "7"
    rest = (correct, correct, 1, 2, 0, 3, "eos", None, 0.1)
    return Prediction(index, f"question {index}", extracted, extracted, answer, correct, *rest, sample=sample)


def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_sample():
    for samples in range(1, 8):
        for right, k in product(range(samples + 1), range(1, samples + 1)):
            subsets = list(combinations([True] * right + [False] * (samples - right), k))
            assert pass_at_k(samples, right, k) == pytest.approx(fmean(map(any, subsets)), abs=1e-15)
    assert [numbers_of_samples(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_scores_are_means_over_problems_with_their_intervals():
    answers = ["77577", "55557", "", "75", "57", "555", "75777", "58967"]
    texts = [one.ljust(5, "-") for one in answers]
    made = [
        prediction(index, sample, text.strip("-"), text == "7")
        for index, own in enumerate(texts)
        for sample, text in enumerate(own)
    ]
    found = sample_scores(made[::-1], EXACT)
    assert found["number"] == 5
    for k in (1, 2, 4, 5):
        passed = [fmean(any(text == "7" for text in some) for some in combinations(own, k)) for own in texts]
        expected = mean_of(passed)
        assert found["pass_at"][str(k)] == {
            "share": pytest.approx(expected.estimate),
            "share_95": pytest.approx([expected.low, expected.high]),
        }
        voted = []
        for own in texts:
            counts = Counter(text for text in own[:k] if text != "-")
            best = [text for text in own[:k] if counts[text] == max(counts.values(), default=0)]
            voted.append(bool(best) and best[0] == "7")
        interval = wilson(sum(voted), len(voted))
        assert found["majority_of"][str(k)] == {"share": fmean(voted), "share_95": [interval.low, interval.high]}
    covered = sum("7" in own for own in texts)
    assert found["coverage"]["share"] == covered / len(texts)
    assert found["coverage"]["share_95"] == [wilson(covered, 8).low, wilson(covered, 8).high]


def test_equal_values_vote_together_and_the_first_of_tied_answers_wins():
    def voted(texts: list[str], scoring=EXACT, known: bool = True):
        right = [text in ("7", "7.0") if known else None for text in texts]
        return vote([prediction(3, n, *one) for n, one in enumerate(zip(texts, right, strict=True))], scoring)

    tied = voted(["5", "7", "7", "5"])
    assert (tied.extracted, tied.correct, tied.votes, tied.right, tied.samples) == ("5", False, 2, 2, 4)
    assert voted(["", "7", "5"]).correct
    assert voted(["", ""]).as_dict() == {
        **{"index": 3, "question": "question 3", "answer": "7", "extracted": "", "correct": False},
        **{"votes": 0, "right": 0, "samples": 2},
    }
    assert voted(["5", "5"], known=False).correct is None
    split = ["5", "7", "5", "7.0", "$7"]
    assert not voted(split).correct
    for name, answers in (("exact", "numbers"), ("number", "text"), ("last_number", "text")):
        assert voted(split[:-1], scoring_of(name, answers)).votes == 2
        assert voted([*split[:-1], "07"], scoring_of(name, answers)).extracted == "7"
    assert voted(split, scoring_of("exact", "numbers")).votes == 3
    # Python refuses to write numbers of more than 4,300 digits.
    assert voted(["9" * 5000, "7", "7"], scoring_of("exact", "numbers")).correct
    choice = scoring_of("choice", "text")
    assert voted(["True", "1", "1.0", "False", "False"], choice).votes == 3
    assert voted(["A", "B", "A", "0"], choice).extracted == "A"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("samples"), PROBLEMS, "llama")


@pytest.fixture(scope="module")
def whole(place):
    """The folder of an evaluation that nothing interrupted."""
    evaluate(compose_eval_config([*arguments_of(place, place / "whole"), *NOISE]))
    return place / "whole"


@pytest.fixture
def fast(monkeypatch) -> None:
    """Leaves out pictures and git, and loads a checkpoint once."""
    monkeypatch.setattr("coconut_ds.evaluation.identity.code_identity", lambda: {"version": "1"})
    for name in ("draw_sweep", "draw_samples"):
        monkeypatch.setattr(f"coconut_ds.evaluation.report.{name}", lambda scores, path, *more: path.write_bytes(b""))
    monkeypatch.setattr("coconut_ds.evaluation.loading.load_reasoner", cache(load_reasoner))


def scores(out: Path) -> dict:
    return {key: value for key, value in json.loads((out / "scores.json").read_text()).items() if key != "run"}


def test_an_evaluation_writes_all_samples_their_scores_votes_and_a_picture(place, whole, capsys):
    lines, found = predictions(whole), scores(whole)
    assert [(line["index"], line["sample"]) for line in lines] == list(product(range(PROBLEMS), range(5)))
    groups = [lines[start : start + 5] for start in range(0, len(lines), 5)]
    rights = [[line["correct"] for line in group] for group in groups]
    assert 0 < fmean(map(any, rights)) < 1
    assert any(len(set(own)) == 2 for own in rights), "samples differ"
    assert found["samples"]["pass_at"]["1"]["share"] == pytest.approx(fmean(map(fmean, rights))) == found["accuracy"]
    assert found["samples"]["pass_at"]["1"]["share_95"] == found["accuracy_95"]
    assert found["samples"]["coverage"]["share"] == pytest.approx(fmean(map(any, rights)))
    assert {key: found["samples"][key] for key in ("thought_noise", "thought_sigma", "number")} == {
        **{"thought_noise": "gaussian", "thought_sigma": 1.0, "number": 5}
    }
    assert (found["problems"], found["scored"]) == (PROBLEMS, PROBLEMS)
    assert sum(one["problems"] for one in found["by_number_of_steps"].values()) == PROBLEMS
    votes = [json.loads(line) for line in (whole / "votes.jsonl").read_text().splitlines()]
    assert fmean(one["correct"] for one in votes) == found["samples"]["majority_of"]["5"]["share"]
    assert [one["right"] for one in votes] == list(map(sum, rights))
    for name in ("samples.png", "accuracy.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert main(["--compare", str(whole), str(whole)]) == 2
    assert "compare the majority votes instead: votes.jsonl" in capsys.readouterr().err
    assert main(["--compare", *[str(whole / "votes.jsonl")] * 2]) == 0
    (whole / "samples.png").unlink()
    assert main([*arguments_of(place, whole), *NOISE]) == 0
    assert "pass@5  majority of 5" in capsys.readouterr().out
    assert (whole / "samples.png").is_file()


def test_samples_depend_on_neither_batch_size_nor_order_nor_other_ranks(place, whole, tmp_path, fast):
    """With fewer samples they are the first ones of more. The problems come in another order, and from two ranks."""
    known = {(line["question"], line["sample"]): line for line in predictions(whole)}

    def check(lines) -> None:
        for line in lines:
            there = known[line["question"], line["sample"]]
            assert {**line, "index": 0} == {**there, "index": 0}

    evaluate(compose_eval_config([*arguments_of(place, tmp_path / "one"), *NOISE, "batch_size=3", "samples=2"]))
    lines = predictions(tmp_path / "one")
    assert len(lines) == 2 * PROBLEMS
    check(lines)
    items = json.loads((place / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(items[::-2]))
    job = evaluation_job(
        compose_eval_config([*arguments_of(place, tmp_path / "no"), *NOISE, f"data={tmp_path / 'data.json'}"]), ALONE
    )
    work, made = [Work(0, index, sample) for index in range(len(job.problems)) for sample in (3, 1)], []
    for rank in range(2):
        evaluator = replace(job.evaluator(), ranks=replace(ALONE, rank=rank, size=2))
        own = evaluator.share_of(work)
        assert 0 < len(own) < len(work)
        made += evaluator.predict(job.reasoner.loop, job.problems, job.budgets, own)
    assert {one for one, _ in made} == set(work)
    lines = [found.as_dict() for _, found in made]
    for line in lines:
        del line["latency_s"]
    check(lines)


def test_samples_of_tokens_are_a_function_of_question_and_number(place, tmp_path, fast):
    """The temperature alone makes samples differ."""
    found = []
    for size, data in ((2, "data.json"), (64, "again.json")):
        items = json.loads((place / "data.json").read_text())[:6]
        (tmp_path / data).write_text(json.dumps(items if size == 2 else items[::-1]))
        out, arguments = tmp_path / str(size), [f"data={tmp_path / data}", "samples=3", "temperature=1.5"]
        evaluate(compose_eval_config([*arguments_of(place, out), *arguments, f"batch_size={size}"]))
        found.append({(line["question"], line["sample"]): line["text"] for line in predictions(out)})
    assert found[0] == found[1]
    assert len(set(found[0].values())) > 6


def test_without_samples_tokens_are_drawn_by_seed_and_index_of_the_problem(place, tmp_path):
    """So an evaluation with one answer draws the tokens that it drew in versions without samples."""
    config = compose_eval_config([*arguments_of(place, tmp_path / "drawn"), "temperature=1.5", "seed=7"])
    job = evaluation_job(config, ALONE)
    work = [Work(0, index) for index in range(PROBLEMS)]
    requests = job.evaluator()._requests(job.problems, job.budgets, work)
    assert [(one.sampling.seed, one.sampling.sample) for one in requests] == [(7, index) for index in range(PROBLEMS)]


@pytest.mark.slow
def test_an_evaluation_of_samples_that_is_killed_carries_on_with_other_ranks(place, whole, tmp_path):
    out, release = tmp_path / "killed", tmp_path / "release"
    process = start([HELD, release, *arguments_of(place, out), *NOISE, "batch_size=4"], environment())
    wait_until(lambda: count_kept(out) == HELD_AT or process.poll() is not None, limit_s=120)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert count_kept(out) == HELD_AT
    run_evaluation([*arguments_of(place, out), *NOISE, "batch_size=7"], ranks=2)
    assert predictions(out) == predictions(whole)
    assert scores(out) == {**scores(whole), "settings": scores(out)["settings"]}
    assert (out / "votes.jsonl").read_bytes() == (whole / "votes.jsonl").read_bytes()
    assert not (out / ".partial").exists()


def test_a_sample_of_an_evaluation_can_be_traced(place, whole, fast):
    """The probe's seed and number name the same noise. Thoughts are decoded without their own noise."""
    lines = predictions(whole)
    line = next(one for one in lines[3::5] if one["text"] != lines[5 * one["index"]]["text"])
    config = compose_eval_config([*arguments_of(place, place / "no"), *NOISE])
    job = evaluation_job(config, ALONE)
    sample = Sample(NoiseSettings("gaussian", 1.0), 4, 3)
    (trace,) = trace_thoughts(job.reasoner, line["question"], 2, max_new_tokens=6, sample=sample)
    assert trace.text == line["text"]
    ((last,),) = answers_after(job.reasoner, [line["question"]], numbers=[2], max_new_tokens=6, sample=sample)
    assert last.text == line["text"]
    (other,) = trace_thoughts(job.reasoner, line["question"], 2, max_new_tokens=6)
    assert trace.thoughts[0].decoded == other.thoughts[0].decoded
    assert trace.thoughts[1].decoded != other.thoughts[1].decoded
