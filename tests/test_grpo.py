"""The loss of ``grpo`` equals a slow twin in all parts and gradients; rollouts are replayed exactly."""

from dataclasses import replace
from itertools import chain
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from making_completions import GAINS, MARKERS, WEIGHTS, completions_of, config_of
from slow_grpo import GrpoOptions, Sampled, slow_grpo
from slow_thoughts import IGNORE, unchanged
from tiny_models import make_model
from torch_engine import tiny_experiment

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.generation import slot_table
from coconut_ds.generation.batch import generate
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model import loss as loss_module
from coconut_ds.model.collate import Collator
from coconut_ds.model.feed import Projection
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.thought_noise import NoiseSizes
from coconut_ds.objectives.grpo import Completions, Grpo
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.advantages import advantages, longest_completion, token_weights
from coconut_ds.training.batches import BatchGeometry, plan_update
from coconut_ds.training.iterations import Iterations, prepare_noise
from coconut_ds.training.rollouts import Batch


class Case(NamedTuple):
    """A loss to compare."""

    overrides: tuple[str, ...] = ()
    family: str = "gpt2"
    thoughts: int = 3
    known: bool = True
    """Whether log probabilities under the model that sampled are given, far from those of the current model."""
    checkpointing: bool = False
    ranks: int = 2
    chunked: bool = False
    joined: bool = False
    """Whether the rest joins the pass of the last thought, as in bf16."""


SVP = "grpo.exploration=svp"
CASES = {
    "gaussian": Case(("grpo.sigma=0.7",)),
    "only_update": Case(("grpo.sigma=0.7", "grpo.temperature=0.6"), known=False, ranks=1),
    "dropout": Case(
        ("grpo.exploration=dropout", "grpo.dropout=0.4", "grpo.epsilon_high=0.4", "grpo.num_iterations=2"),
        checkpointing=True,
    ),
    "feed": Case(("objective.feed=projection", "grpo.beta=0.5"), "llama"),
    "jacobi": Case(("thinking=jacobi", "method.iterations=9", "grpo.beta=0"), "llama", ranks=1),
    "chunks": Case(("grpo.beta=0.3",), chunked=True),
    "svp": Case((SVP, "grpo.svp_scale=0.8"), joined=True),
    "svp_grouped_keys": Case((SVP, "grpo.svp_scale=0.6", "grpo.beta=0"), "llama"),
    "svp_checkpointing": Case((SVP, "grpo.svp_scale=0.8"), "llama", checkpointing=True, joined=True, ranks=1),
    "no_thoughts": Case(("grpo.exploration=none", "method=no_cot"), thoughts=0),
}


def given(rows: list[Layout], offset: float) -> list[list[float]]:
    """Log probabilities of all tokens, between -1 and -5."""
    return [
        [-3 + 2 * float(np.sin(offset + 7 * token + place)) for place, token in enumerate(row.targets)] for row in rows
    ]


@pytest.mark.parametrize("name", CASES)
def test_parts_measures_and_gradients_are_those_of_the_slow_twin(name, monkeypatch):
    """Ragged prompts and completions in micro batches of two, one of which repeats a completion of another rank; ratios
    on both sides of the limits, for advantages of both signs."""
    case = CASES[name]
    config = config_of(*case.overrides)
    objective, settings = Grpo(config), config.objective.grpo
    if case.joined:
        monkeypatch.setattr(LatentLoop, "_is_fp32", False)
    if case.chunked:
        monkeypatch.setattr(loss_module, "LOGITS_AT_A_TIME", 3 * 64)
    torch.manual_seed(1)
    feed = Projection(32, 24) if config.objective.feed == "projection" else None
    model = make_model(case.family)
    loop = objective.equip(LatentLoop(model, case.checkpointing, feed=feed))
    sizes = prepare_noise(loop, is_due=True)
    completions = replace(completions_of(config, case.thoughts, loop.width, case.known), sizes=sizes)
    rows = list(completions.views[0])
    old, reference = given(rows, 0.0) if case.known else [[]] * 5, given(rows, 1.0) if settings.beta else [[]] * 5
    geometry, collator = BatchGeometry(5, 2, 3 - case.ranks + 1, case.ranks), Collator(0, config.parallel)
    found = torch.zeros(5)
    for rank in range(case.ranks):
        for view in plan_update(completions.views[0], geometry, rank, "token"):
            batch = objective.collate(collator, completions, [view])
            known = (torch.tensor(list(chain(*(each[row] for row in view.rows)))) for each in (old, reference))
            batch = replace(
                batch,
                **{key: each if len(each) else None for key, each in zip(("old", "reference"), known, strict=True)},
            )
            parts = loop(objective.loss, batch)
            parts[:2].sum().backward()
            found += parts.detach()
    gradients = {name: parameter.grad for name, parameter in loop.named_parameters()}

    width, noise = loop.width, objective.exploration.draw(completions.keys, case.thoughts, completions.sizes)
    blank = torch.ones(5, case.thoughts, width)
    factor = blank if noise is None or noise.factor is None else noise.factor.expand_as(blank)
    term = 0 * blank if noise is None or noise.term is None else noise.term
    codes = [None] * 5 if noise is None or noise.codes is None else noise.codes
    sampled = [
        Sampled(rows[row], GAINS[row], WEIGHTS[row], factor[row], term[row], old[row], reference[row], codes[row])
        for row in range(5)
    ]
    high = settings.epsilon_high or settings.epsilon
    options = GrpoOptions(
        settings.temperature, MARKERS.all(), settings.epsilon, high, settings.beta, settings.svp_scale
    )
    loop.zero_grad()
    slow, measures = slow_grpo(model, sampled, feed or unchanged, options)
    sum(slow.values()).backward()
    assert case.known == (0.1 < measures["clip_fraction"] < 0.9)
    assert found.tolist() == pytest.approx(
        [*(value.item() for value in slow.values()), *measures.values()], rel=2e-5, abs=1e-6
    )
    for parameter_name, parameter in loop.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(
            gradients[parameter_name], wanted, rtol=1e-3, atol=2e-5 * scale, msg=f"{name} {parameter_name}"
        )


def test_noise_is_a_function_of_its_key():
    """Neither of other samples nor of the number of thoughts; the mask is the same for all thoughts."""
    sizes = NoiseSizes(50)
    for kind, setting in (("gaussian", "grpo.sigma=2"), ("dropout", "grpo.dropout=0.25")):
        explores = Grpo(config_of(f"grpo.exploration={kind}", setting)).exploration
        many, one = explores.draw([f"0/0/0/{row}" for row in range(40)], 6, sizes), explores.draw(["0/0/0/7"], 2, sizes)
        values = many.term if kind == "gaussian" else many.factor
        alone = one.term if kind == "gaussian" else one.factor
        assert torch.equal(values[7, : alone.shape[1]], alone[0])
        assert len({tuple(row.flatten().tolist()) for row in values}) == 40
        if kind == "gaussian":
            assert values.mean().abs() < 0.06
            assert abs(values.std() - 2) < 0.04
        else:
            assert values.shape[1] == 1
            assert set((0.75 * values).flatten().tolist()) == {0.0, 1.0}
            assert abs((values == 0).float().mean() - 0.25) < 0.04


class Sent(Exception):
    """Raised instead of waiting for other ranks."""


class Half(Ranks):
    """One of two ranks. It gathers ``others``, the values of both; without them it raises what it would send."""

    others: ClassVar[list | None] = None

    def gather(self, value):
        if self.others is None:
            raise Sent(value)
        return self.others


RUN = ("objective=grpo", "replay_prob=0", "grpo.num_generations=3", "grpo.reward=making_rewards:brevity")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("grpo.exploration=dropout", "objective.feed=projection"),
        ("grpo.exploration=svp",),
        ("grpo.exploration=svp", "thinking=jacobi", "method.iterations=2"),
        ("thinking=jacobi", "method.iterations=2"),
        ("thinking=looped", "method.iterations=2"),
        ("method=pause", "grpo.exploration=none", "grpo.temperature=0.5"),
    ],
)
def test_rollouts_do_not_depend_on_ranks_and_their_replay_has_the_same_probabilities(more, monkeypatch):
    """So importance ratios are 1 up to rounding before the first update. Samples share the keys and values of their
    prompt, unless these have noise."""
    monkeypatch.setattr(slot_table, "MIN_SHARED", 1)
    run = tiny_experiment(*RUN, *more, "max_new_tokens=6")
    objective, loop = run.objective, run.loop().eval()
    sampler = Iterations(run).sampler
    prepare_noise(loop, is_due=True)
    number = run.method.num_latents(run.curriculum.last_stage, None, run.spec)
    batch = Batch(5, [4, 11, 7, 2, 9], run.problems.train(0), run.problems.texts(0), number)
    groups = sampler.sample(loop, batch)
    assert [len(group) for group in groups] == [3] * 5
    assert len({tuple(each.tokens) for group in groups for each in group}) > 8

    sent = []
    for rank in range(2):
        with pytest.raises(Sent) as found:
            replace(sampler, ranks=Half(rank, 2)).sample(loop, batch)
        sent.append(found.value.args[0])
    assert [len(found) for found, _ in sent] == [3, 2]
    monkeypatch.setattr(Half, "others", sent)
    assert replace(sampler, ranks=Half(1, 2)).sample(loop, batch) == groups

    scored: list[list[float]] = []

    def scoring(loop, requests, *rest):
        made = generate(loop, [replace(each, log_probabilities=True) for each in requests], *rest)
        scored.extend(each.log_probabilities for each in made)
        return made

    again = sampler.sample(lambda task, *arguments: scoring(loop, *arguments), batch)
    assert again == groups
    rollouts = list(chain(*groups))
    layouts = Layouts.of([each.prompt.continued(each.tokens) for each in rollouts])
    keys = tuple(each.key for each in rollouts) if objective.exploration.kind != "none" else ()
    ones = np.ones(len(rollouts))
    completions = Completions((layouts,), ones, ones, keys, loop.noise_sizes, run.backbone.markers.all(), False)
    temperature = run.config.objective.grpo.temperature
    for view in plan_update(layouts, BatchGeometry(15, 4, 4, 1), 0, "token"):
        replayed = loop(objective.log_probabilities, objective.collate(run.collator, completions, [view]))
        wanted = torch.tensor(list(chain(*(scored[row] for row in view.rows))))
        if temperature == 1:
            assert torch.exp(replayed - wanted).tolist() == pytest.approx([1.0] * len(wanted), abs=1e-4)
        else:
            # The engine reports them before the temperature, so they are computed here.
            wanted = [value for row in view.rows for value in at_temperature(loop, layouts[row], temperature, run)]
            assert replayed.tolist() == pytest.approx(wanted, abs=1e-4)


def at_temperature(loop, row, temperature, run):
    """Log probabilities of the targets of a row without thoughts."""
    with torch.no_grad():
        logits = loop.model(torch.tensor([list(row.input_ids)])).logits[0] / temperature
    logits[:, list(run.backbone.markers.all())] = -torch.inf
    places = [place for place, label in enumerate(row.labels) if label != IGNORE]
    every = logits.log_softmax(dim=-1)
    return [float(every[place - 1, row.labels[place]]) for place in places]


def test_an_answer_of_one_token_counts_as_one_token():
    """``dr_grpo`` divides by the largest number of tokens, which is 1 there, whatever ``max_new_tokens`` says."""
    cases = {"data=prosqa_symbolic": 1, "data=prosqa_file": 32, "grpo.max_completion_length=7": 7}
    for override, longest in cases.items():
        config = compose_config(["objective=grpo", "advance=epochs", "max_new_tokens=32", override])
        assert longest_completion(config.objective.grpo, config.data) == longest


def test_advantages_and_weights():
    """Against sums written out, with a group whose completions are equally good."""
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [2.0, -1.0, 0.0, 0.0]])
    plain = advantages(rewards, "none")
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [1.75, -1.25, -0.25, -0.25]]
    assert advantages(rewards, "group")[0].tolist() == pytest.approx(
        [0.5 / (3**-0.5 + 1e-4) * s for s in (1, -1, -1, 1)]
    )
    assert np.allclose(advantages(rewards, "batch"), plain / (np.std(rewards, ddof=1) + 1e-4))
    lengths = np.array([2.0, 5.0])
    weights = {kind: token_weights(lengths, 8, 40, 10, kind).tolist() for kind in ("sum", "grpo", "bnpo", "dr_grpo")}
    assert weights == {"sum": [1 / 8] * 2, "grpo": [1 / 16, 1 / 40], "bnpo": [1 / 40] * 2, "dr_grpo": [1 / 80] * 2}
