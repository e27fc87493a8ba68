"""The model card of a checkpoint: made with it, extended by evaluations, edited by people, never counted as damage."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard
from making import contents, make_backbone, make_card
from making_feeds import SPEC

from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation.model_card import checkpoint_with_card
from coconut_ds.evaluation.session import evaluate
from coconut_ds.files import README, SEAL, damage, released_checkpoints
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.model.readme import BEGIN, END, Origin, Score, record_scores, write_readme
from coconut_ds.settings.compose import compose_config, compose_eval_config
from coconut_ds.training.checkpoint_writer import origin_of

ORIGIN = Origin("likelihood", "sums.json", "gpt2")


@pytest.fixture
def checkpoint(tmp_path):
    backbone = make_backbone()
    folder = tmp_path / "run" / "checkpoint_1"
    state, card = backbone.model.state_dict(), make_card(backbone)
    save_model(
        folder, backbone.model, state, backbone.tokenizer, card, origin=Origin("likelihood", "sums.json", "gpt2")
    )
    return folder


def make_score(**changes) -> Score:
    score = Score("gsm8k", "test", 0.25, (0.2, 0.3125), 1319, 6, {"decoding": "greedy", "precision": "float32"})
    return replace(score, **changes)


def test_a_card_says_how_the_model_thinks_and_what_it_was_trained_on(checkpoint):
    text = (checkpoint / README).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert {key: front[key] for key in ("method", "objective", "training_data", "base_model", "n_thoughts")} == {
        "method": "coconut",
        "objective": "likelihood",
        "training_data": "sums.json",
        "base_model": "gpt2",
        "n_thoughts": 6,
    }
    assert "coconut" in front["tags"]
    for words in (
        "| method | `coconut` |",
        "| epochs | 4 |",
        'load_reasoner("FOLDER")',
        "python -m serve api",
        "6 thoughts",
    ):
        assert words in text
    other = checkpoint.parent / "other"
    other.mkdir()
    card = replace(make_card(make_backbone()), feed=SPEC, method="pause", num_thoughts=0, num_pauses=4, iterations=2)
    write_readme(other, card)
    text = (other / README).read_text()
    assert "4 pause tokens" in text
    assert "a projection of width 24" in text
    assert "`jacobi`" in text
    assert "objective" not in text


def test_equal_checkpoints_have_equal_cards_which_are_not_sealed(checkpoint, tmp_path):
    backbone = make_backbone()
    again = tmp_path / "again"
    arguments = (backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    save_model(again, *arguments, origin=ORIGIN)
    assert contents(again) == contents(checkpoint)
    assert README not in json.loads((again / SEAL).read_text())["files"]
    (again / README).write_text("edited")
    (checkpoint / README).unlink()
    for folder in (again, checkpoint):
        assert damage(folder, hashes=True) == []
        load_folder(folder)


def test_scores_are_added_replaced_and_sorted_and_edits_stay(checkpoint):
    path, card = checkpoint / README, make_card(make_backbone())
    edited = path.read_text().replace("language: en", "language: en\nlicense: mit").replace("# coconut", "# My model")
    path.write_text(edited + "\nThanks to everybody.\n")
    record_scores(checkpoint, card, [make_score(), make_score(latents=0, accuracy=0.125)])
    record_scores(checkpoint, card, [make_score(accuracy=0.5), make_score(data="svamp")])
    text = path.read_text()
    for words in ("license: mit", "# My model", "Thanks to everybody.", "How to use it"):
        assert words in text
    rows = [line for line in text.split(BEGIN)[1].split(END)[0].splitlines() if line.startswith(("| gsm8k", "| svamp"))]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| gsm8k", "test", "0", "12.5%"],
        ["| gsm8k", "test", "6", "50.0%"],
        ["| svamp", "test", "6", "25.0%"],
    ]
    assert "| 20.0% – 31.2% | 1,319 | decoding greedy, precision float32 |" in rows[2]
    results = HubCard(text).data.eval_results
    assert [(one.dataset_name, one.metric_value, one.metric_args["interval_95"]) for one in results] == [
        ("gsm8k", 0.125, [0.2, 0.3125]),
        ("gsm8k", 0.5, [0.2, 0.3125]),
        ("svamp", 0.25, [0.2, 0.3125]),
    ]
    assert [one.name for one in checkpoint.parent.iterdir()] == [checkpoint.name]
    path.write_text(text.replace(BEGIN, ""))
    record_scores(checkpoint, card, [])
    assert path.read_text().count(END) >= 1
    path.write_text("---\n- not\n- a mapping\n---\n")
    with pytest.raises(CheckpointError, match="could not be added to this model card"):
        record_scores(checkpoint, card, [make_score()])


def test_what_the_card_of_a_run_says_of_its_training(tmp_path):
    """No path of the machine is among it."""
    config = compose_config(
        ["objective=codi", "method=coconut_no_curriculum", "data=gsm_file", "model=gpt2_pretrained"]
    )
    assert origin_of(config) == Origin("codi", "gsm_train.json", "openai-community/gpt2")
    model = config.model.model_copy(update={"model_id": str(tmp_path)})
    assert origin_of(config.model_copy(update={"model": model})).base_model is None
    assert origin_of(compose_config(["data=modular_sum"])).data == "modular_sum"


def test_cards_of_the_released_checkpoints_are_left_alone(tmp_path):
    """git tracks them, or pip has installed them; a copy is the user's own."""
    folder, *others = sorted(released_checkpoints().iterdir())
    assert [checkpoint_with_card(one) for one in others] == [None]
    (tmp_path / "link").symlink_to(folder)
    assert [checkpoint_with_card(one) for one in (folder, str(folder), tmp_path / "link")] == [None, None, None]
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert checkpoint_with_card(copy) == copy


def test_an_evaluation_adds_its_scores_once(checkpoint, tmp_path, capsys):
    """The same command again finds the results, and changes no byte; another number of thoughts adds a row."""
    problems = [{"question": f"{n} + 2 =", "steps": [], "answer": "3"} for n in (1, 2)]
    (tmp_path / "sums.json").write_text(json.dumps(problems))
    common = [f"checkpoint={checkpoint}", f"data={tmp_path / 'sums.json'}", "data.max_new_tokens=1"]

    def run(name: str, *more: str) -> str:
        evaluate(compose_eval_config([*common, f"out={tmp_path / name}", *more]))
        return (checkpoint / README).read_text()

    first = run("a")
    score = json.loads((tmp_path / "a" / "scores.json").read_text())
    low, high = score["accuracy_95"]
    assert f"| sums | test | 6 | {score['accuracy']:.1%} | {low:.1%} – {high:.1%} | 2 | decoding greedy" in first
    (checkpoint / README).unlink()
    assert run("a").count("| sums |") == 1
    problems[0]["answer"] = "4"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sums.json").write_text(json.dumps(problems))
    more = run("c", f"data={tmp_path / 'other' / 'sums.json'}", "data.answers=numbers", "data.max_new_tokens=2")
    rows = [line for line in more.splitlines() if line.startswith("| sums |")]
    assert len({row.partition("problems_sha256")[2] for row in rows}) == 2
    assert ["answers numbers" in row for row in rows] == [True, False]
    (checkpoint / README).write_text(first)
    both = run("b", "n_thoughts=0,2")
    assert [line.split(" | ")[2] for line in both.splitlines() if line.startswith("| sums |")] == ["0", "2", "6"]
    assert run("a") == both
    capsys.readouterr()
    (checkpoint / README).write_text("---\n- broken\n---\n")
    assert run("a") == "---\n- broken\n---\n"
    assert "note: " in capsys.readouterr().err
