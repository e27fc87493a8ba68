"""Evaluation: each problem once, the checkpoint decides how to think, wrong requests refused."""

import dataclasses
import json
import random

import pytest
import torch
from making import make_backbone, make_card, settings_of
from safetensors.torch import load_file, save_file

from coconut_ds.data.graph_stats import graph_stats
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.data.tokens import build_word_tokenizer, encode_questions
from coconut_ds.errors import CheckpointError, ConfigError, DataError
from coconut_ds.evaluation import evaluator
from coconut_ds.evaluation.partial import PartialPredictions
from coconut_ds.evaluation.session import evaluate, trace_questions
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods import METHODS
from coconut_ds.methods.layout import lay_out_prompt
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.checkpoint import save_model
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings.compose import compose_eval_config


@pytest.fixture
def checkpoint(tmp_path):
    backbone = make_backbone(seed=5)
    folder = tmp_path / "checkpoint_1"
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    return folder, backbone


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    questions = ["1", "1 + 2", "2 + 2 =", "3", "1 + 1 + 2", "3 2", "2 1"]
    path.write_text(json.dumps([{"question": q, "steps": ["1"], "answer": "3"} for q in questions]))
    return path


def config_of(folder, data, tmp_path, *more: str):
    out = [f"out={tmp_path / 'out'}", "overwrite=true"]
    return compose_eval_config([f"checkpoint={folder}", f"data={data}", *out, *more])


def test_scores_do_not_depend_on_the_batch_size(checkpoint, data, tmp_path):
    runs = [evaluate(config_of(checkpoint[0], data, tmp_path, f"batch_size={size}"))[0] for size in (1, 3, 7)]
    assert [p.index for p in runs[0].predictions] == list(range(7))
    assert runs[0].predictions == runs[1].predictions == runs[2].predictions
    assert runs[0].num_thoughts == 6
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(7))


def test_text_is_what_generation_gives_and_thoughts_can_be_asked_for(checkpoint, data, tmp_path):
    folder, backbone = checkpoint
    for count in (0, 2):
        made = evaluate(config_of(folder, data, tmp_path, f"n_thoughts={count}", "max_new_tokens=4"))[0]
        question = encode_questions(backbone.tokenizer, ["1 + 2"])[0]
        prompt = lay_out_prompt(METHODS["coconut"], question, count, backbone.markers)
        eos = backbone.tokenizer.eos_token_id
        request = Request(prompt, 4, suppress=backbone.markers.all())
        tokens = generate(LatentLoop(backbone.model.eval()), [request], [eos])[0].tokens
        assert made.predictions[1].num_tokens == len(tokens)
        kept = [t for t in tokens if t != eos]
        assert made.predictions[1].text == backbone.tokenizer.decode(kept)


def test_a_trace_has_a_decoded_thought_for_each_thought(checkpoint, data, tmp_path):
    traced = trace_questions(config_of(checkpoint[0], data, tmp_path), 3)
    assert [t.problem.question for t in traced] == ["1", "1 + 2", "2 + 2 ="]
    assert all(len(t.thoughts) == 6 and len(t.thoughts[0].tokens) == 5 for t in traced)
    assert all(t.thoughts[0].probabilities == sorted(t.thoughts[0].probabilities, reverse=True) for t in traced)


def test_a_plain_hugging_face_folder_needs_a_method(checkpoint, data, tmp_path):
    folder, _ = checkpoint
    (folder / "coconut.json").unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no coconut\.json.*set method=cot"):
        evaluate(config_of(folder, data, tmp_path))
    made = evaluate(config_of(folder, data, tmp_path, "method=cot", "max_new_tokens=3"))[0]
    assert made.num_thoughts == 0


def test_requests_that_cannot_be_met_are_refused(checkpoint, data, tmp_path):
    folder, _ = checkpoint
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate(config_of(tmp_path / "none", data, tmp_path))
    with pytest.raises(
        ConfigError, match="data=nowhere: no such file and no such option; expected a file or one of asdiv_a"
    ):
        config_of(folder, "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="checkpoint: missing"):
        compose_eval_config(["data=prosqa_eval"])


def test_a_prompt_longer_than_the_context_is_refused(checkpoint, data, tmp_path):
    folder, _ = checkpoint
    values = json.loads((folder / "config.json").read_text()) | {"n_positions": 20}
    (folder / "config.json").write_text(json.dumps(values))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:20].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"problem 0: its prompt has 93 positions, thoughts included.*context is 20"):
        evaluate(config_of(folder, data, tmp_path, "n_thoughts=89"))


def test_a_sweep_has_a_folder_a_table_row_and_a_point_for_each_number(checkpoint, data, tmp_path, capsys):
    """Each sweep point equals an evaluation of its own; the prompts are encoded once."""
    folder, out = checkpoint[0], tmp_path / "out"
    sweep = evaluate(config_of(folder, data, tmp_path, "n_thoughts=0,2,5", "max_new_tokens=4"))
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:5]] == ["0", "2", "5"]
    assert [one["num_thoughts"] for one in json.loads((out / "sweep.json").read_text())] == [0, 2, 5]
    assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    for made, count in zip(sweep, (0, 2, 5), strict=True):
        alone = evaluate(config_of(folder, data, tmp_path / str(count), f"n_thoughts={count}", "max_new_tokens=4"))[0]
        assert made.predictions == alone.predictions
        assert json.loads((out / f"{count}_thoughts" / "scores.json").read_text())["num_thoughts"] == count
    forced = evaluate(config_of(folder, data, tmp_path, "force_text_after=0,2", "max_new_tokens=4"))
    assert [one.predictions for one in forced] == [one.predictions for one in sweep[:2]]
    assert (out / "text_after_2" / "predictions.jsonl").is_file()


def test_problems_without_answers_are_answered_and_not_scored(checkpoint, tmp_path, capsys):
    path, out = tmp_path / "asked.json", tmp_path / "out"
    path.write_text(json.dumps([{"question": "1 + 2"}, {"question": "2"}]))
    made = evaluate(config_of(checkpoint[0], path, tmp_path, "max_new_tokens=3"))[0]
    assert [p.correct for p in made.predictions] == [None, None]
    assert json.loads((out / "scores.json").read_text())["accuracy"] is None
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    assert not (out / "accuracy.png").exists()
    assert "no answers to compare with" in capsys.readouterr().out
    path.write_text(json.dumps([{"question": "1 + 2"}, {"question": "2", "answer": "3"}]))
    made = evaluate(config_of(checkpoint[0], path, tmp_path, "max_new_tokens=3"))[0]
    assert [p.correct for p in made.predictions] == [None, False]
    assert json.loads((out / "scores.json").read_text())["by_number_of_steps"].keys() == {"0"}


def test_graph_problems_have_categories_and_shortcuts_beside_them(tmp_path, capsys):
    path, folder = tmp_path / "graphs.json", tmp_path / "model"
    shape = settings_of("gpt2")
    longer = {"model_config_overrides": shape.model_config_overrides | {"n_positions": 500}}
    backbone = build_backbone(shape.model_copy(update=longer), build_word_tokenizer(["1 2"]))
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    problems = [generate_problem(random.Random(seed)) for seed in range(6)]
    path.write_text(json.dumps([problem.as_dict() for problem in problems]))
    evaluate(config_of(folder, path, tmp_path, "n_thoughts=1", "max_new_tokens=3", "batch_size=2"))
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    stats = graph_stats(problems)
    assert scores["baselines"] == {
        "more_ancestors": pytest.approx(stats.more_ancestors),
        "mentioned_less": pytest.approx(stats.mentioned_less),
    }
    assert sum(scores["categories"].values()) == pytest.approx(1)
    assert sum(one["problems"] for one in scores["by_number_of_steps"].values()) == 6
    shown = capsys.readouterr().out
    assert "more ancestors" in shown
    assert "mentioned less" in shown
    # One graph cannot be used, one answer is hidden: told before the first pass, the rest is scored as before.
    broken = dataclasses.replace(problems[1], extra=problems[1].extra | {"target": 0})
    hidden = dataclasses.replace(problems[2], answer="")
    path.write_text(json.dumps([problem.as_dict() for problem in (problems[0], broken, hidden)]))
    options = ("n_thoughts=1", "max_new_tokens=3", f"out={tmp_path / 'broken'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "with_category", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(config_of(folder, path, tmp_path, *options))
    assert f"warning: {path}: item 1: found root" in capsys.readouterr().err
    kept = sum(file.read_text().count("\n") for file in (tmp_path / "broken").rglob(".partial/*/*.jsonl"))
    assert kept == 3, "a failing analysis does not cost the predictions"
    made = evaluate(config_of(folder, path, tmp_path, *options))[0]
    assert [one.category is None for one in made.predictions] == [False, True, True]
    assert [one.correct for one in made.predictions] == [False, False, None]
    found = json.loads((tmp_path / "broken" / "scores.json").read_text())
    assert (found["problems"], found["scored"], found["unusable_graphs"]) == (3, 2, 1)
    assert set(found["baselines"].values()) <= {0.0, 0.5, 1.0}, "those of the first problem alone"
    told = capsys.readouterr().out
    assert "problems without an answer to compare with, not scored: 1 of 3" in told
    assert "graphs that cannot be used, so not categorised nor counted for shortcuts: 1" in told


def test_numbers_are_compared_as_the_data_says(checkpoint, tmp_path):
    """The model's first answer is the right one, however its number is written; an empty answer is never right."""
    path, questions = tmp_path / "numbers.json", ["1 + 2", "2 1"]
    answers = Reasoner(checkpoint[1], make_card(checkpoint[1])).generate(questions, max_new_tokens=1)
    for kind, expected in (("numbers", True), ("text", False)):
        items = [
            {"question": q, "steps": [], "answer": f"${a.answer}.0"} for q, a in zip(questions, answers, strict=True)
        ]
        path.write_text(json.dumps(items))
        options = (f"answers={kind}", "max_new_tokens=1", f"out={tmp_path / kind}")
        made = evaluate(config_of(checkpoint[0], path, tmp_path, *options))[0]
        assert [one.correct for one in made.predictions] == [
            expected and one.extracted.isdigit() for one in made.predictions
        ]
        assert any(one.extracted.isdigit() for one in made.predictions)
    options = ("scoring=last_number", "max_new_tokens=1", f"out={tmp_path / 'last'}")
    made = evaluate(config_of(checkpoint[0], path, tmp_path, *options))[0]
    assert [one.correct for one in made.predictions] == [None, None], "CODI's code reads no number in $1.0"
    scorings = [json.loads((tmp_path / out / "scores.json").read_text())["scoring"] for out in ("text", "last")]
    assert scorings[0] == {"name": "exact", "source": "facebookresearch/coconut, run.py"}
    assert scorings[1] == {"name": "last_number", "source": "zhenyi4/codi, test.py"}


def test_a_state_dict_needs_method_thoughts_and_model(tmp_path, data):
    """Saved as in the reference implementation."""
    backbone = make_backbone(seed=5)
    backbone.tokenizer.save_pretrained(tmp_path / "tokenizer")
    state = {f"base_causallm.{name}": value for name, value in backbone.model.state_dict().items()}
    torch.save(state, tmp_path / "checkpoint_3")
    sizes = "{n_embd: 32, n_layer: 2, n_head: 4, n_positions: 96}"
    shape = ["model=gpt2_scratch_small", f"model_config_overrides={sizes}", f"tokenizer={tmp_path / 'tokenizer'}"]
    file = tmp_path / "checkpoint_3"
    for given, words in (
        ([], "does not say how it thinks; set method=cot"),
        (["method=coconut"], "set n_thoughts too"),
        (["method=coconut", "n_thoughts=2"], "does not say its architecture; set model="),
    ):
        with pytest.raises(CheckpointError, match=words):
            evaluate(config_of(file, data, tmp_path, *given))
    made = evaluate(config_of(file, data, tmp_path, "method=coconut", "n_thoughts=2", "max_new_tokens=4", *shape))[0]
    reasoner = Reasoner(backbone, make_card(backbone).with_latents(2))
    texts = [answer.text for answer in reasoner.generate([p.question for p in made.predictions], max_new_tokens=4)]
    assert [p.text for p in made.predictions] == texts


def test_an_earlier_evaluation_of_another_kind_is_not_carried_on(checkpoint, data, tmp_path):
    folder = checkpoint[0]
    config = config_of(folder, data, tmp_path, "max_new_tokens=2")
    first = evaluate(config)[0].predictions
    partial = PartialPredictions(tmp_path / "out", "other")
    partial.add(0, dataclasses.replace(first[0], text="wrong"))
    partial.close()
    assert evaluate(config)[0].predictions == first


def test_steps_are_compared_with_those_of_the_stage_that_fits_the_thoughts(checkpoint, tmp_path):
    """Stage 3 with two thoughts per step: with four thoughts the third step is still written, with none all are."""
    folder, path = checkpoint[0], tmp_path / "data.json"
    asked = [{"question": "1 + 2", "steps": ["1", "2", "3"], "answer": "3"}]
    path.write_text(json.dumps(asked))
    texts = {}
    for count in (6, 4, 0):
        made = evaluate(config_of(folder, path, tmp_path, f"n_thoughts={count}", "max_new_tokens=5"))[0]
        texts[count] = made.predictions[0].text
    # The steps are now what the model writes: each number of thoughts is right if it expects the right steps.
    for count, steps in ((6, ["1", "2", "3"]), (4, ["1", "2", texts[4]]), (0, [texts[0]])):
        path.write_text(json.dumps([asked[0] | {"steps": steps}]))
        sweep = evaluate(config_of(folder, path, tmp_path, "n_thoughts=6,4,0", "max_new_tokens=5"))
        assert sweep[(6, 4, 0).index(count)].predictions[0].steps_match == (count != 6)
        alone = evaluate(config_of(folder, path, tmp_path, f"n_thoughts={count}", "max_new_tokens=5"))[0]
        assert alone.predictions[0].steps_match == (count != 6)
