"""An experiment from its configuration: the same one each time, its sequences in words, and what is refused at once."""

import pytest
import torch
from torch_engine import tiny_experiment

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import save_model
from coconut_ds.training.experiment import Experiment

SHORT = {"<|start-latent|>": "<s>", "<|end-latent|>": "<e>", "<|latent|>": "<t>", "<|pause|>": "<p>", "\n": "/"}


def state_of(experiment: Experiment) -> dict[str, torch.Tensor]:
    return dict(experiment.backbone.model.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def readable(experiment: Experiment, layout: Layout) -> str:
    """``context | the rest`` in the tokenizer's words, cut before the first target; ignored labels after it in ()."""
    tokenizer = experiment.backbone.tokenizer
    words = [SHORT.get(word, word) for word in tokenizer.convert_ids_to_tokens(list(layout.input_ids))]
    words = ["eos" if word == tokenizer.eos_token else word for word in words]
    first = next(place for place, label in enumerate(layout.labels) if label != IGNORE)
    labels = list(layout.labels[first:])
    assert all(label in (IGNORE, token) for label, token in zip(labels, layout.input_ids[first:], strict=True))
    rest = [word if label != IGNORE else f"({word})" for word, label in zip(words[first:], labels, strict=True)]
    return f"{' '.join(words[:first])} | {' '.join(rest)}"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "coconut",
            [
                "<s> <e> | 1 / 3 / 4 / ### 4 eos",
                "<s> <t> <e> | 3 / 4 / ### 4 eos",
                "<s> <t> <t> <e> | 4 / ### 4 eos",
                "<s> <t> <t> <e> | ### 4 eos",
            ],
        ),
        (
            "coconut_reversed",
            [
                "| 1 / 3 / 4 / <s> (<e>) ### 4 eos",
                "| 1 / 3 / <s> (<t>) (<e>) ### 4 eos",
                "| 1 / <s> (<t>) (<t>) (<e>) ### 4 eos",
                "| <s> (<t>) (<t>) (<e>) ### 4 eos",
            ],
        ),
        ("pause", ["<p> <p> | ### 4 eos"] * 4),
        ("cot", ["| 1 / 3 / 4 / ### 4 eos"] * 4),
    ],
)
def test_the_sequences_of_a_problem_in_words(method, expected):
    """The first training problem at stages 0 to 3, the last of which removes all steps."""
    experiment = tiny_experiment(f"method={method}")
    problem = experiment.problems.train(0)[0]
    found = [readable(experiment, experiment.sequences.one(problem, stage)) for stage in range(4)]
    assert found == [f"9 + 2 + 2 + 1 = / {rest}" for rest in expected]
    assert experiment.curriculum.last_stage == (3 if method.startswith("coconut") else 0)


def test_equal_configurations_make_equal_experiments():
    """Whatever was drawn before; another seed gives other weights and other problems."""
    one = tiny_experiment("seed=3")
    torch.rand(5)
    again, other = tiny_experiment("seed=3"), tiny_experiment("seed=4")
    assert equal(state_of(one), state_of(again))
    assert not equal(state_of(one), state_of(other))
    assert list(one.problems.train(1)) == list(again.problems.train(1)) != list(other.problems.train(1))
    assert one.weights is None, "random weights follow from the configuration and need no hash"


def test_weights_that_are_loaded_are_loaded_exactly_and_hashed(tmp_path):
    """From a folder; the hash changes with a single bit of a single weight."""
    source = tiny_experiment("seed=7")
    backbone, hashes = source.backbone, []
    card = ModelCard("coconut", 1, 1, 1, 2, marker_table(backbone.markers))
    for number in range(3):
        if number == 2:
            weight = backbone.model.transformer.h[0].mlp.c_fc.weight
            with torch.no_grad():
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        folder = tmp_path / str(number)
        save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, card)
        loaded = tiny_experiment(f"load_model_path={folder}")
        assert equal(state_of(loaded), state_of(source))
        hashes.append(loaded.weights)
    assert hashes[0] == hashes[1] is not None
    assert hashes[2] not in (None, hashes[0])


def test_with_adapters_the_models_own_weights_are_frozen_and_unchanged():
    """Adapters and the rows of the markers learn; the start is the model without adapters."""
    plain, adapted = tiny_experiment(), tiny_experiment("model.lora.rank=2")
    before, after = state_of(plain), state_of(adapted)
    names = {name.replace(".base_layer", ""): value for name, value in after.items()}
    for name, value in before.items():
        if "wte" not in name and "lm_head" not in name:
            assert torch.equal(names[name], value), name
    trained = {name for name, one in adapted.backbone.model.named_parameters() if one.requires_grad}
    assert trained
    assert all("lora_" in name or name.startswith("transformer.wte") for name in trained)
    assert all(one.requires_grad for one in plain.backbone.model.parameters())
    again = tiny_experiment("model.lora.rank=2")
    assert equal(state_of(again), after), "adapters are drawn from the run's seed too"


@pytest.mark.parametrize("method", ["coconut", "coconut_no_curriculum"])
def test_only_a_curriculum_mixes_stages(method):
    """Under replay_prob=1 a problem's stage is any up to the epoch's, drawn from epoch and number alone."""
    experiment = tiny_experiment(f"method={method}", "replay_prob=1.0")
    problems = experiment.problems.train(0)
    stages = []
    for index, problem in enumerate(problems):
        layout = experiment.sequences.one_for_training(5, 2, index, problem)
        assert layout == experiment.sequences.one_for_training(5, 2, index, problem)
        stages.append(next(stage for stage in (2, 1, 0) if experiment.sequences.one(problem, stage) == layout))
    assert set(stages) == ({0, 1, 2} if method == "coconut" else {2})
    unmixed = tiny_experiment(f"method={method}", "replay_prob=0.0")
    for index, problem in enumerate(problems):
        assert unmixed.sequences.one_for_training(5, 2, index, problem) == unmixed.sequences.one(problem, 2)


@pytest.mark.parametrize("positions", range(16, 24))
def test_problems_that_do_not_fit_the_context_are_refused_before_anything_is_trained(positions):
    """The longest sequence of a problem at any stage decides: 20 tokens at stage 0, one of them the end of text."""
    fits = positions >= 20
    override = f"model.model_config_overrides.n_positions={positions}"
    if fits:
        experiment = tiny_experiment(override)
        lengths = [
            len(experiment.sequences.one(one, stage)) for one in experiment.problems.train(0) for stage in range(4)
        ]
        assert max(lengths) == 20
    else:
        with pytest.raises(DataError, match=f"problem 0 has 20 tokens.*context is {positions}"):
            tiny_experiment(override)


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused():
    assert tiny_experiment(ranks=Ranks(size=2)).geometry.accumulation == 1
    with pytest.raises(ConfigError, match="global_batch_size=8"):
        tiny_experiment(ranks=Ranks(size=3))


def test_evaluation_uses_the_settings_of_the_run():
    experiment = tiny_experiment("max_new_tokens=7", "batch_size_eval=3")
    evaluator = experiment.evaluator()
    found = (evaluator.writing.max_new_tokens, evaluator.slots, evaluator.context_length, evaluator.ranks)
    assert found == (7, 3, 64, experiment.ranks)
    assert experiment.pad_id == experiment.backbone.tokenizer.eos_token_id


def test_the_line_for_the_log_counts_parameters_tokens_and_problems():
    experiment = tiny_experiment("model.lora.rank=2", "model.model_config_overrides.n_embd=128")
    parameters = list(experiment.backbone.model.parameters())
    every, trained = (sum(one.numel() for one in parameters if one.requires_grad or both) for both in (True, False))
    line = experiment.describe()
    for part in (f"{every / 1e6:.2f} M", f"{trained / 1e6:.2f} M", f"{len(experiment.backbone.tokenizer)} tokens"):
        assert part in line
    assert "20 training" in line
    assert "6 validation" in line
