"""lm-evaluation-harness on tiny local tasks: its scores equal those of the reasoner and the slow loop.

The harness runs in this process. It usually reads its thousands of own tasks first, which takes ten seconds; not here.
"""

import functools
import importlib.util
import json
import logging
import os
import re
import sys

import pytest
import torch
from making import make_backbone, make_card
from slow_loop import slow_embeddings

from coconut_ds import lm_harness, load_reasoner
from coconut_ds.errors import DataError
from coconut_ds.files import seal
from coconut_ds.generation.prompter import Thoughts
from coconut_ds.model.checkpoint import save_model

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("needs the extra: pip install -e '.[harness]'", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("default")

QUESTIONS = ["1 + 2", "3 =", "2 + 2 =", "3 + 3"]
CHOICES = ["1", "2 3", "+"]
LENGTH = 5
TASKS = {
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["2"], "max_new_tokens": LENGTH, "do_sample": False, "num_beams": 1},
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
    folder = tmp_path_factory.mktemp("it's, = (2)")
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
        files = {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder / "cache")}
        data = {"dataset_path": "json", "dataset_kwargs": files}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
    return folder


@pytest.fixture
def harness(place, monkeypatch: pytest.MonkeyPatch):
    """Runs the command as documented, on the checkpoint and the tasks of ``place``; returns its exit code."""
    import lm_eval.tasks

    own_tasks_only = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_tasks_only)
    # The harness sets this variable.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", os.environ.get("TOKENIZERS_PARALLELISM", "true"))

    def run(tasks: list[str], *more: str, path: object = None) -> int:
        model = json.dumps({"path": str(path or place / "model"), "n_thoughts": 2})
        words = ["coconut-lm-eval", "run", "--model", "coconut", "--model_args", model]
        words += ["--include_path", str(place / "tasks"), "--tasks", ",".join(tasks), *more]
        monkeypatch.setattr(sys, "argv", words)
        return lm_harness.main()

    yield run
    # Its handler writes to the standard error of this test.
    logging.getLogger("lm_eval").handlers.clear()
    monkeypatch.setattr(lm_eval.utils, "_LOGGING_CONFIGURED", False)


@pytest.mark.slow
def test_scores_of_a_local_task_are_those_of_the_model(place, harness, capsys):
    """The command has no --device and no --batch_size, for which the harness passes cuda:0 and 1."""
    assert harness([*TASKS], "--output_path", str(place), "--log_samples") == 0
    shown = capsys.readouterr()
    if not torch.accelerator.is_available():
        assert "there is no CUDA device: computing on cpu instead of cuda:0" in shown.err
    assert "batch_size: 1 (32)" in shown.out
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


ERRORS = {
    "no folder": ([], {"path": "/nowhere"}, "error: checkpoint=/nowhere: no such folder"),
    "chat": (["--apply_chat_template"], {}, "--apply_chat_template: the tokenizer of .* has no chat template"),
    "beams": (
        ["--gen_kwargs", "num_beams=4"],
        {},
        r"generation_kwargs: found num_beams=4; expected until, .*num_beams=1",
    ),
    "device": (["--device", "tpu:0"], {}, "device=tpu:0: unknown; expected cpu"),
    "batch": (["--batch_size", "many"], {}, "batch_size=many: expected a whole number"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_a_user_can_correct_is_one_error(case, harness, capsys):
    more, named, words = ERRORS[case]
    assert harness(["written"], *more, **named) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(words, last), last


@pytest.fixture(scope="module")
def chatting(place):
    """The harness's model on a checkpoint whose tokenizer has a chat template with special tokens."""
    from coconut_ds.lm_model.model import CoconutLM

    backbone = make_backbone("llama", seed=4)
    folder = place / "chatting"
    eos = backbone.tokenizer.eos_token
    backbone.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}" + eos + "{% endfor %}{% if add_generation_prompt %} = {% endif %}"
    )
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    return CoconutLM.create_from_arg_obj({"path": str(folder), "n_thoughts": 2}, {"device": "cpu", "batch_size": 1})


def instance(kind: str, *arguments: object):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)


def test_a_chat_template_gives_the_whole_prompt_with_its_special_tokens(chatting):
    eos = chatting.tokenizer.eos_token_id
    context = chatting.apply_chat_template([{"role": "user", "content": "1 + 2"}])
    assert context == f"1 + 2{chatting.tokenizer.eos_token} = "
    encode = functools.partial(chatting.tokenizer.encode, add_special_tokens=False)
    ids = [*encode("1 + 2"), eos, *encode(" = ")]
    prompter = chatting._reasoner.prompter
    expected = prompter.prompt(ids, Thoughts(2))
    seen = []
    chatting._run, run = lambda requests, quiet: seen.extend(requests) or run(requests, quiet), chatting._run
    chatting.generate_until([instance("generate_until", context, {"until": ["2"], "max_gen_toks": 2})], True)
    chatting.loglikelihood([instance("loglikelihood", context, "3"), instance("loglikelihood", "1 + 2", "3")], True)
    assert [request.prompt for request in seen[:2]] == [expected, expected]
    assert seen[2].prompt == prompter.prompt(prompter.encode(["1 + 2"])[0], Thoughts(2))
    assert chatting.chat_template(True) == chatting.tokenizer.chat_template
    with pytest.raises(DataError, match=r"refuses messages of the roles system, user \(no system\)"):
        chatting.apply_chat_template([{"role": "system", "content": "1"}, {"role": "user", "content": "2"}])
    with pytest.raises(DataError, match="one chat template, without a name"):
        chatting.chat_template("other")


def test_names_of_special_tokens_in_a_text_are_text(chatting):
    """In contexts, in texts to be scored and in whole texts; only a chat template writes special tokens by name."""
    # The end of a text is also a word of this tokenizer's vocabulary, so only the markers show it.
    special = set(chatting._reasoner.prompter.markers.all())
    text = "1 <|latent|><|end-latent|> 2"
    assert special & set(chatting.tokenizer.encode(text, add_special_tokens=False)), "the text has their names"
    seen = []
    chatting._run, run = lambda requests, quiet: seen.extend(requests) or run(requests, quiet), chatting._run
    chatting.loglikelihood([instance("loglikelihood", "1", text)], True)
    chatting.loglikelihood_rolling([instance("loglikelihood_rolling", text)], True)
    assert len(seen) == 2
    assert not special & {token for request in seen for token in request.continuation}


@pytest.mark.parametrize(
    ("given", "most", "expected"),
    [
        (1, None, 32),
        (None, None, 32),
        ("1", None, 1),
        ("8", None, 8),
        (16, None, 16),
        ("auto", None, 32),
        ("auto:4", 8, 8),
    ],
)
def test_the_batch_size_of_the_command_line_counts_and_the_harness_default_does_not(given, most, expected):
    from coconut_ds.lm_model.arguments import slots

    assert slots(given, most) == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
def test_without_an_accelerator_the_processor_computes(caplog):
    from coconut_ds.lm_model.arguments import usable_device

    assert [usable_device(name) for name in (None, "cpu", "cuda:0", "cuda:3")] == [torch.device("cpu")] * 4
    with pytest.raises(DataError, match="device=mps: this machine has no such device; set --device cpu"):
        usable_device("mps")
