"""Tokens are drawn from the distribution that temperature, top-k and top-p describe."""

import pytest
import torch

from coconut_ds.generation import sampling as module
from coconut_ds.generation.requests import Sampling
from coconut_ds.generation.sampling import choose, likeliest, uniform


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
