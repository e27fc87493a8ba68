"""Tokens are drawn from the distribution that temperature, top-k and top-p describe."""

import sys

import pytest
import torch

from coconut_ds.errors import DataError
from coconut_ds.generation import sampling as module
from coconut_ds.generation.requests import Sampling
from coconut_ds.generation.sampling import NOT_FINITE, choose, likeliest, uniform


def expected(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """The distribution, slow and obvious."""
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64) / sampling.temperature, -1).tolist()
    order = sorted(range(len(logits)), key=lambda token: -probabilities[token])[: sampling.top_k]
    kept, total = [], sum(probabilities[token] for token in order)
    mass = 0.0
    for token in order:
        if mass < sampling.top_p * total:
            kept.append(token)
        mass += probabilities[token]
    whole = sum(probabilities[token] for token in kept)
    return {token: probabilities[token] / whole for token in kept}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=3),
        Sampling(1.0, top_p=0.6),
        Sampling(1.3, top_k=5, top_p=0.8),
        Sampling(1.0, top_k=100, top_p=0.01),
    ],
)
def test_an_even_grid_of_draws_gives_the_distribution(monkeypatch, sampling):
    logits = [0.3, 1.7, float("-inf"), -0.4, 1.1, 0.9, 2.2]
    steps = 4000
    monkeypatch.setattr(module, "uniform", lambda _, index: (index + 0.5) / steps)
    rows = torch.tensor([logits]).expand(steps, -1).clone()
    tokens = choose(rows, [sampling] * steps, range(steps)).tolist()
    shares = {token: tokens.count(token) / steps for token in set(tokens)}
    wanted = expected(logits, sampling)
    assert shares.keys() == wanted.keys()
    assert all(shares[token] == pytest.approx(wanted[token], abs=2 / steps) for token in wanted)


def test_rows_keep_to_their_own_settings():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    mixed = [
        Sampling(),
        Sampling(1.0, seed=1),
        Sampling(1.0, top_k=2),
        Sampling(),
        Sampling(0.8, top_p=0.5),
        Sampling(9.0),
    ]
    together = choose(logits.clone(), mixed, [0, 4, 2, 0, 7, 1]).tolist()
    alone = [int(choose(logits[n : n + 1].clone(), [mixed[n]], [index])) for n, index in enumerate([0, 4, 2, 0, 7, 1])]
    assert together == alone
    assert together[0] == int(logits[0].argmax())


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_draws_at_both_ends_choose_a_token_that_may_be_chosen(monkeypatch, draw):
    monkeypatch.setattr(module, "uniform", lambda *_: draw)
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.9)):
        assert int(choose(logits.clone(), [sampling], [0])) in (1, 2)


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-250, 1e-60])
def test_the_lowest_temperatures_are_almost_greedy(temperature):
    """Logits of any size; of several largest ones each is drawn."""
    logits = torch.tensor([[1.0, 2.0, 2.0, float("-inf")], [3e38, -3e38, 1e38, 0.0], [1e-45, 0.0, -1e-45, 0.0]])
    for settings in ({}, {"top_k": 99}, {"top_p": 0.999}):
        rows = [Sampling(temperature, seed=seed, **settings) for seed in range(20)]
        drawn = [set(choose(row.expand(20, -1).clone(), rows, [0] * 20).tolist()) for row in logits]
        assert drawn == [{1, 2}, {0}, {0}]


def test_the_highest_temperature_is_even():
    logits = torch.tensor([[3.0, -2e38, 2e38, float("-inf")]]).expand(60, -1).clone()
    drawn = choose(logits, [Sampling(sys.float_info.max, seed=seed) for seed in range(60)], [0] * 60).tolist()
    assert set(drawn) == {0, 1, 2}
    for temperature in (float("inf"), float("nan"), 10**400):
        with pytest.raises(DataError, match="temperature"):
            Sampling(temperature)


@pytest.mark.parametrize("bad", [[float("nan"), 1.0, 2.0], [1.0, float("inf"), 0.0], [float("-inf")] * 3])
def test_rows_without_a_finite_largest_logit_get_no_token_and_change_no_other(bad):
    ways = [Sampling(), Sampling(1.0, seed=3), Sampling(1.0, top_k=2, seed=4), Sampling(1.0, top_p=0.8, seed=5)]
    good = torch.tensor([0.3, 1.1, 0.2])
    logits = torch.stack([torch.tensor(bad), good]).repeat(4, 1)
    tokens = choose(logits, [way for way in ways for _ in range(2)], [0] * 8).tolist()
    assert tokens[::2] == [NOT_FINITE] * 4
    assert tokens[1::2] == choose(good.expand(4, -1).clone(), ways, [0] * 4).tolist()


def test_seeds_of_all_sizes():
    seeds = [0, -1, 2**63, -(2**63), 2**64, 2**255]
    assert len({uniform(Sampling(1.0, seed=seed), 0) for seed in seeds}) == len(seeds)
    with pytest.raises(DataError, match="seed: has 20001 bits"):
        Sampling(1.0, seed=2**20_000)


def test_draws_are_even_and_their_own():
    draws = [
        uniform(Sampling(1.0, seed=seed, sample=sample), index)
        for seed in range(8)
        for sample in range(8)
        for index in range(16)
    ]
    assert len(set(draws)) == len(draws)
    assert 0.48 < sum(draws) / len(draws) < 0.52
    assert uniform(Sampling(0.3, seed=5), 2) == uniform(Sampling(0.9, top_k=4, seed=5), 2)


def test_the_likeliest_token_is_the_first_of_those_with_the_largest_logit():
    """Also with many ties, and where only the last token may be chosen."""
    logits = torch.randint(0, 9, (6, 3000), generator=torch.Generator().manual_seed(0)).float()
    logits[0] = float("-inf")
    logits[1, :-1] = float("-inf")
    assert torch.equal(likeliest(logits), logits.argmax(dim=-1))
    assert likeliest(logits)[2] == (logits[2] == 8).nonzero()[0]
