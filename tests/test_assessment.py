"""Evaluation: each problem once, the checkpoint decides how to think, wrong requests refused."""

import json

import pytest
from safetensors.torch import load_file, save_file
from test_checkpoint import make_backbone, make_card

from coconut_ds.assessment import evaluate, trace
from coconut_ds.checkpoint import save_model
from coconut_ds.compose import compose_eval_config
from coconut_ds.errors import CheckpointError, ConfigError, DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.layout import lay_out_prompt
from coconut_ds.methods import METHODS
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.tokens import encode_questions


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
    return compose_eval_config([f"checkpoint={folder}", f"data={data}", f"out={tmp_path / 'out'}", *more])


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
    traced = trace(config_of(checkpoint[0], data, tmp_path), 3)
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
        ConfigError, match="data=nowhere: no such file and no such option; expected a file or one of gsm"
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
