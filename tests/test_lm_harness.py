"""lm-evaluation-harness on tiny local tasks: its scores equal those of the reasoner and the slow loop."""

import importlib.util
import json
import os
import subprocess
import sys

import launching
import pytest
import torch
from making import make_backbone, make_card
from slow_loop import slow_embeddings

from coconut_ds import load_reasoner
from coconut_ds.files import seal
from coconut_ds.generation.prompter import Thoughts
from coconut_ds.model.checkpoint import save_model

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("needs the extra: pip install 'coconut-ds[harness]'", allow_module_level=True)

QUESTIONS = ["1 + 2", "3 =", "2 + 2 =", "3 + 3"]
CHOICES = ["1", "2 3", "+"]
LENGTH = 5
TASKS = {
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["2"], "max_gen_toks": LENGTH, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "chosen": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "doc_to_choice": CHOICES,
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{long}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
LONG = " ".join(["1 + 2 = 3"] * 40)
"""200 words, which take three windows of the model's context of 96 tokens."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and three tasks with the same four problems."""
    folder = tmp_path_factory.mktemp("harness")
    backbone = make_backbone("llama", seed=4)
    save_model(folder / "model", backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    # A second end of texts, as instruct models have it.
    first = load_reasoner(folder / "model").generate(QUESTIONS, 2, max_new_tokens=LENGTH)
    ends = [backbone.tokenizer.eos_token_id, first[0].completion.tokens[1]]
    (folder / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    seal(folder / "model")
    (folder / "tasks").mkdir()
    written = load_reasoner(folder / "model").generate(QUESTIONS, 2, max_new_tokens=LENGTH, stop=["2"])
    assert any(one.completion.tokens[-1] == ends[1] and len(one.completion.tokens) < LENGTH for one in written)
    items = [
        {"question": one.question, "answer": one.text if n else "else", "label": n % 3, "long": LONG}
        for n, one in enumerate(written)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
    return folder


def command(place, *more: str) -> list[str]:
    words = ["coconut_ds.lm_harness", "run", "--model", "coconut", "--include_path", str(place / "tasks")]
    return [*words, "--tasks", ",".join(TASKS), "--device", "cpu", *more]


@pytest.mark.slow
def test_scores_of_a_local_task_are_those_of_the_model(place):
    home = {**os.environ, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    model = f"--model_args=path={place / 'model'},n_thoughts=2"
    words = [sys.executable, "-m", *command(place, model, "--output_path", str(place), "--log_samples")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=home)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(next(place.rglob("results_*.json")).read_text())["results"]
    assert results["written"]["exact_match,none"] == 3 / 4

    reasoner = load_reasoner(place / "model", device="cpu")
    best = [[slow_score(reasoner, q, c, 2) for c in CHOICES] for q in QUESTIONS]
    samples = [json.loads(line) for line in next(place.rglob("samples_chosen_*.jsonl")).read_text().splitlines()]
    found = [
        [float(score) for (score, _) in one["filtered_resps"]] for one in sorted(samples, key=lambda s: s["doc_id"])
    ]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float), torch.tensor(best), atol=2e-4, rtol=0)
    right = sum(scores.index(max(scores)) == n % 3 for n, scores in enumerate(best))
    assert results["chosen"]["acc,none"] == right / 4

    expected = slow_perplexity(reasoner)
    assert results["perplexity"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def slow_score(reasoner, question: str, continuation: str, thoughts: int) -> float:
    """The log probability of a continuation, with everything recomputed for each thought."""
    backbone = reasoner.backbone
    layout = reasoner.prompter.prompt(reasoner.prompter.encode([question])[0], Thoughts(thoughts))
    tokens = backbone.tokenizer.encode(continuation, add_special_tokens=False)
    embeds = slow_embeddings(backbone.model, layout)
    given = backbone.model.get_input_embeddings()(torch.tensor([tokens]))
    logits = backbone.model(inputs_embeds=torch.cat([embeds, given], dim=1)).logits[0, -len(tokens) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(tokens)), tokens].sum())


@torch.no_grad()
def slow_perplexity(reasoner) -> float:
    """The perplexity per word. Each token is predicted once, after as many tokens as fit into the context."""
    backbone, longest = reasoner.backbone, reasoner.context_length - 1
    tokens = backbone.tokenizer.encode(LONG, add_special_tokens=False)
    eos, total, place = backbone.tokenizer.eos_token_id, 0.0, 0
    while place < len(tokens):
        end = min(place + longest, len(tokens))
        before = [eos, *tokens][max(0, end - longest) : end]
        scores = backbone.model(torch.tensor([before])).logits[0].log_softmax(-1)
        total += sum(float(scores[n - end, tokens[n]]) for n in range(place, end))
        place = end
    return float(torch.exp(torch.tensor(-total / len(LONG.split()))))


@pytest.mark.slow
def test_what_a_user_can_mend_is_told(place):
    done = launching.run(["-m", *command(place, f"--model_args=path={place / 'nowhere'}")], launching.environment())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint=")
    assert "nowhere: no such folder" in done.stderr
