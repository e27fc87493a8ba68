"""Generated chains: correct by brute force, pure functions of seed, epoch and index, no problem in two splits."""

import itertools
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coconut_ds.data.arithmetic import Chains, ModularSum, PermutationProduct, split_of_terms
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.settings import SplitSizes

SIZE = SplitSizes(train=40, valid=20, test=20)
KINDS = ["sum", "product"]
few = settings(max_examples=25, deadline=None)


def source(kind: str, seed: int = 0, size: SplitSizes = SIZE, num_terms: int = 4, online: bool = True) -> Chains:
    if kind == "sum":
        return ModularSum(seed, size, num_terms, online, modulus=7)
    return PermutationProduct(seed, size, num_terms, online)


SUMS, PRODUCTS = source("sum"), source("product")


def terms_of(problem: Problem) -> tuple[str, ...]:
    return tuple(problem.question.removesuffix(" =").replace(" + ", " * ").split(" * "))


@few
@given(st.lists(st.integers(0, 6), min_size=2, max_size=8))
def test_a_sum_writes_every_running_sum(numbers: list[int]) -> None:
    problem = SUMS.problem(list(map(str, numbers)))
    assert problem.question == " + ".join(map(str, numbers)) + " ="
    assert list(problem.steps) == [str(sum(numbers[: end + 1]) % 7) for end in range(1, len(numbers))]
    assert problem.answer == str(sum(numbers) % 7)


@few
@given(st.lists(st.permutations("abc"), min_size=2, max_size=7))
def test_a_product_composes_maps_from_the_right(letters: list[list[str]]) -> None:
    """Each permutation as a dictionary; the product of a prefix sends x through its last factor first."""
    maps = [dict(zip("abc", images, strict=True)) for images in letters]
    running = []
    for end in range(2, len(maps) + 1):
        images = ""
        for letter in "abc":
            for factor in reversed(maps[:end]):
                letter = factor[letter]
            images += letter
        running.append(images)
    problem = PRODUCTS.problem(["".join(images) for images in letters])
    assert (problem.steps, problem.answer) == (tuple(running), running[-1])


def test_order_matters_in_a_product() -> None:
    assert PRODUCTS.problem(["bca", "acb"]).answer == "bac"
    assert PRODUCTS.problem(["acb", "bca"]).answer == "cba"


@pytest.mark.parametrize("kind", KINDS)
def test_all_splits_hold_well_formed_problems_with_words_of_the_vocabulary(kind: str) -> None:
    chains = source(kind)
    known = {word for text in chains.vocabulary() for word in text.split()}
    for problem in (*chains.train(0), *chains.valid(), *chains.test()):
        assert problem == chains.problem(terms_of(problem))
        assert len(terms_of(problem)) == 4
        assert len(problem.steps) == 3
        assert {*problem.question.split(), *problem.steps, problem.answer} <= known


@few
@pytest.mark.parametrize("kind", KINDS)
@given(seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 2**32)), epoch=st.integers(0, 99))
def test_no_problem_is_in_two_splits_whatever_the_seeds(kind: str, seeds: tuple[int, int, int], epoch: int) -> None:
    train = set(map(terms_of, source(kind, seeds[0]).train(epoch)))
    valid = set(map(terms_of, source(kind, seeds[1]).valid()))
    test = set(map(terms_of, source(kind, seeds[2]).test()))
    assert not train & valid
    assert not train & test
    assert not valid & test


@pytest.mark.parametrize("kind", KINDS)
def test_validation_and_test_problems_differ_from_each_other_and_never_change(kind: str) -> None:
    chains = source(kind)
    for draw in (chains.valid, chains.test):
        first = draw()
        chains.train(5)
        assert draw() == first == draw()
        assert len(set(first)) == len(first) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_training_problems_are_new_each_epoch_only_online(kind: str) -> None:
    online, fixed = source(kind), source(kind, online=False)
    assert online.train(0) != online.train(1)
    assert fixed.train(0) == fixed.train(1) == online.train(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_depends_only_on_seed_epoch_and_index(kind: str) -> None:
    whole, part = source(kind), source(kind, size=SplitSizes(train=10, valid=5, test=5))
    third = whole.train(3)
    whole.train(0)
    assert whole.train(3) == third
    assert part.train(3) == third[:10]
    assert part.valid() == whole.valid()[:5]
    assert source(kind, seed=1).train(3) != third
    assert source(kind, seed=1).valid() != whole.valid()


def test_a_twentieth_of_all_problems_is_for_validation_and_three_for_test() -> None:
    """N = 10,000 sums, each in a split with probability p: standard deviation sqrt(N p (1 - p)); five are allowed."""
    splits = [split_of_terms(terms) for terms in itertools.product("0123456789", repeat=4)]
    for split, p in (("valid", 0.05), ("test", 0.15), ("train", 0.8)):
        assert abs(splits.count(split) - 10_000 * p) < 5 * math.sqrt(10_000 * p * (1 - p))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_more_than_there_are_is_refused_with_the_number_that_works(split: str) -> None:
    def sums(wanted: int) -> Chains:
        return source("sum", size=SplitSizes(**{"train": 1, "valid": 1, "test": 1, split: wanted}), num_terms=3)

    with pytest.raises(DataError, match=rf"data\.size\.{split}=999: 3 terms of 7 elements") as caught:
        sums(999)
    works = int(re.findall(rf"set data\.size\.{split}=(\d+) or less", str(caught.value))[0])
    problems = getattr(sums(works), split)()
    assert (
        len(set(problems)) == works == sum(split_of_terms(t) == split for t in itertools.product("0123456", repeat=3))
    )
    with pytest.raises(DataError, match=r"data\.num_terms"):
        sums(works + 1)


def test_a_space_too_large_to_count_is_bounded_without_counting() -> None:
    settings: dict[str, Any] = {"seed": 0, "num_terms": 30, "online": True}
    PermutationProduct(size=SplitSizes(train=1, valid=500, test=1000), **settings)
    with pytest.raises(DataError, match=r"30 terms of 6 elements"):
        PermutationProduct(size=SplitSizes(train=1, valid=6**30, test=1), **settings)


def test_where_no_size_works_only_another_setting_is_proposed() -> None:
    """Suggested sizes are positive, since ``0 or less`` could not be typed."""
    with pytest.raises(DataError, match=r"data\.num_terms") as caught:
        ModularSum(0, SplitSizes(train=1, valid=1, test=1), 2, True, modulus=2)
    assert "=0 or less" not in str(caught.value)
