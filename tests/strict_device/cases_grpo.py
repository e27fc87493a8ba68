"""``objective=grpo``: completions with noise in their thoughts, their replay and loss, and whole iterations."""

import itertools
from dataclasses import replace

import pytest
import torch
from making_completions import completions_of, config_of
from making_requests import prompt_of
from tiny_models import VOCABULARY
from torch_engine import tiny_experiment

import strict_device
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.generation import thinking_engine
from coconut_ds.generation.batch import generate
from coconut_ds.memory.passes import whole_micro_batch
from coconut_ds.model import loss
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.thought_noise import SampleNoise
from coconut_ds.objectives import grpo
from coconut_ds.objectives.grpo import Grpo, GrpoBatch
from coconut_ds.training.iterations import Iterations, prepare_noise
from strict_device import cases_generation
from strict_device.cases_generation import EOS, FOUR, PLAIN, REQUESTS, SHORT, written
from strict_device.cases_training import check_gradients
from strict_device.engines import make_engine

DEVICE = strict_device.device()
SVP = "grpo.exploration=svp"
NOISE = ("gaussian", "dropout", "svp")
AN_ITERATION = {"gaussian": (6, 2), "dropout": (6, 2), "svp": (7, 3)}
"""Host syncs of an iteration of ``grpo``: reads, and copies to the device. There is one read for each of four tokens,
over all completions together, and one of each kind for each of two updates (``AN_UPDATE``). ``svp`` adds one of each
for the layer whose singular vectors are renewed. Drawing noise and replaying completions add none."""


def completions_on_device(syncs, loop: LatentLoop, objective: Grpo, num_thoughts: int, known: bool) -> GrpoBatch:
    """A micro batch of ragged completions; the host does not wait while it is copied."""
    config = objective.config
    sizes = prepare_noise(loop, is_due=True)
    completions = replace(completions_of(config, num_thoughts, loop.width, known), sizes=sizes)
    collator = Collator(0, config.parallel, pinned=True)
    batch = objective.collate(collator, completions, whole_micro_batch(completions))
    with syncs.refused():
        return batch.to(DEVICE)


def check_grpo(syncs, loop: LatentLoop, objective: Grpo, num_thoughts: int, known: bool) -> None:
    """The replays of a micro batch, and its loss and gradients, without a host sync."""
    batch = completions_on_device(syncs, loop, objective, num_thoughts, known)
    with syncs.refused():
        replayed = loop.eval()(objective.log_probabilities, batch)
        old, reference = replayed if known else None, replayed if objective.keeps_start else None
        parts = loop(objective.loss, replace(batch, old=old, reference=reference))
        parts[:2].sum().backward()
    assert (replayed.device, replayed.shape) == (DEVICE, batch.columns.advantages.shape)
    assert (parts.device, parts.dtype, parts.shape) == (DEVICE, torch.float32, (5,))
    check_gradients(loop)


@pytest.mark.parametrize(
    ("family", "dtype", "overrides", "checkpointing", "known"),
    [
        ("gpt2", torch.float32, ("grpo.beta=0.1",), False, True),
        ("llama", torch.bfloat16, ("grpo.beta=0", "thinking=jacobi", "method.iterations=2"), True, False),
        (
            "llama",
            torch.float32,
            ("grpo.exploration=dropout", "grpo.epsilon_high=0.4", "grpo.num_iterations=2"),
            False,
            True,
        ),
        ("gpt2", torch.bfloat16, ("grpo.exploration=dropout", "grpo.temperature=0.7"), True, False),
        ("gpt2", torch.float32, (SVP, "grpo.beta=0.1"), True, True),
        ("gpt2", torch.bfloat16, (SVP, "grpo.beta=0"), False, False),
        ("llama", torch.float32, (SVP, "thinking=looped", "method.iterations=2"), False, True),
        ("llama", torch.bfloat16, (SVP, "grpo.beta=0.1"), True, False),
        ("llama", torch.float32, ("grpo.exploration=none", "method=no_cot"), False, True),
    ],
)
def test_sampled_completions(syncs, family, dtype, overrides, checkpointing, known):
    """With each kind of noise, with the log probabilities of a reference or of the model that sampled, and without."""
    objective = Grpo(config_of(*overrides))
    model = strict_device.make_model(family, dtype, layers=1 + checkpointing)
    loop = objective.equip(LatentLoop(model, checkpointing, defer_gradients=False))
    check_grpo(syncs, loop, objective, 0 if "method=no_cot" in overrides else 3, known)


def test_sampled_completions_in_chunks(syncs, monkeypatch):
    for module in (loss, grpo):
        monkeypatch.setattr(module, "LOGITS_AT_A_TIME", VOCABULARY * 7)
    objective = Grpo(config_of("grpo.beta=0.1"))
    check_grpo(syncs, LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False), objective, 3, known=True)


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.bfloat16), ("llama", torch.float32)])
def test_the_singular_vectors_of_values_are_renewed_where_the_model_is(syncs, family, dtype):
    """The weights of each layer are read once, since checkpoints contain them, and copied back once."""
    objective = Grpo(config_of(SVP))
    loop = objective.equip(LatentLoop(strict_device.make_model(family, dtype, layers=2)))
    with syncs.counted() as counted:
        sizes = prepare_noise(loop, is_due=True)
    assert (counted.reads, counted.copies) == (2, 2), counted
    directions = loop.value_directions
    assert {weight.device.type for weight in directions.weights} == {"cpu"}
    assert {(part.device, part.dtype) for basis in directions._bases for part in basis} == {(DEVICE, dtype)}
    assert sizes.code == directions.shape
    assert objective.kept_numbers(loop) == sum(part.numel() for basis in directions._bases for part in basis)
    with syncs.refused():
        assert prepare_noise(loop, is_due=False) == sizes


def noisy(kind: str, family: str, dtype: torch.dtype = torch.float32):
    """A function that makes completions with noise of this kind."""
    objective = Grpo(config_of(f"grpo.exploration={kind}"))
    loop = objective.equip(LatentLoop(strict_device.make_model(family, dtype)).eval())
    prepare_noise(loop, is_due=True)

    def sample(requests):
        noise = SampleNoise(objective.exploration, "0/0/0")
        noisy = [replace(each, noise=replace(noise, sample=row)) for row, each in enumerate(requests)]
        return generate(loop, noisy, EOS, slots=3)

    return sample


@pytest.mark.parametrize(
    ("kind", "family", "dtype"),
    [
        ("gaussian", "gpt2", torch.float32),
        ("dropout", "llama", torch.bfloat16),
        ("svp", "gpt2", torch.bfloat16),
        ("svp", "llama", torch.float32),
    ],
)
def test_completions_with_noise(syncs, kind, family, dtype):
    """One after another and at once, in rows with different numbers of thoughts."""
    requests = [*PLAIN.samples(2), FOUR, SHORT, *REQUESTS["jacobi"][:1], *REQUESTS["looped"][:1]]
    made = noisy(kind, family, dtype)(requests)
    assert [completion.tokens for completion in made] == list(map(written, requests))


@pytest.mark.parametrize("kind", NOISE)
def test_noise_adds_no_sync(syncs, kind):
    """Neither to a token nor to a thought, and none where it is drawn and copied."""
    sample, found = noisy(kind, "llama"), []
    for thoughts, tokens in ((2, 3), (6, 3), (2, 7)):
        request = replace(PLAIN, prompt=prompt_of([3, 4, 5], thoughts), max_new_tokens=tokens)
        with syncs.counted() as counted:
            sample([request, request])
        found.append((counted.reads, counted.copies))
    assert found == [(3, 0), (3, 0), (7, 0)]


def test_steps_with_noise_on_values_are_not_captured(syncs, monkeypatch):
    capturing = cases_generation.Refusing(syncs)
    monkeypatch.setattr(thinking_engine, "capturer_for", lambda loop: capturing)
    requests = [replace(PLAIN, max_new_tokens=8)] * 2
    assert [completion.tokens for completion in noisy("svp", "gpt2")(requests)] == list(map(written, requests))
    assert capturing.captures == 0
    noisy("gaussian", "gpt2")(requests)
    assert capturing.captures == 1


@pytest.mark.parametrize("kind", AN_ITERATION)
def test_syncs_of_an_iteration(syncs, monkeypatch, kind):
    """Completions are sampled and replayed, also at the start of the run, and used for two updates."""
    settings = (f"grpo.exploration={kind}", "grpo.num_iterations=2", "grpo.beta=0.1", "grpo.num_generations=2")
    overrides = ("objective=grpo", "replay_prob=0", "grpo.reward=making_rewards:brevity", *settings)
    with torch.device(DEVICE):
        made = tiny_experiment(*overrides, ranks=Ranks(device=DEVICE))
    # All completions are equal here, so the reward is a number that rises.
    rewards = itertools.count(1.0)
    experiment = replace(made, reward=lambda problem, text: next(rewards))
    engine = make_engine(monkeypatch, syncs, experiment.loop(), experiment.config)
    (iteration,) = Iterations(experiment).of_batches(0, 2, experiment.problems.train(0), [[3, 1]], 0)
    with syncs.counted() as counted:
        result = iteration.run(engine, 1e-3, lambda: False)
    print(counted)
    assert result.measures["mixed_groups"] == 1
    assert (counted.reads, counted.copies) == AN_ITERATION[kind], counted
