"""Generated chains of operations: running sums modulo m, running products of permutations of three elements.

The question is the chain (``3 + 5 + 2 + 6 =``), the steps are the running results, and the answer is the last of them.
Permutation products require tracking a state in a non-commutative group: ``bca * acb`` applies ``acb`` first.

Each training problem is a pure function of (seed, split, epoch, index). The split of a problem is decided by a hash
of its terms only, so training, validation and test never share a problem, whatever the seeds.
"""

import hashlib
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig, SplitSizes

BUCKETS = 20
"""Number of hash buckets: one for validation, three for test, the others for training (a fifth is held out)."""
TEST_BUCKETS = (1, 2, 3)


def split_of_terms(terms: Sequence[str]) -> str:
    """The split (train, valid or test) to which a problem with these terms belongs."""
    digest = hashlib.blake2b(" ".join(terms).encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % BUCKETS
    if bucket == 0:
        return "valid"
    return "test" if bucket in TEST_BUCKETS else "train"


class Chains(ABC):
    """A source of problems that apply one operation repeatedly."""

    operator: ClassVar[str]

    def __init__(self, seed: int, size: SplitSizes, num_terms: int, online: bool) -> None:
        self.seed = seed
        self.size = size
        self.num_terms = num_terms
        self.online = online
        self._check_sizes()

    @property
    @abstractmethod
    def elements(self) -> Sequence[str]:
        """All elements of the set, as words."""

    @abstractmethod
    def combine(self, left: str, right: str) -> str:
        """The result of the operation on two elements."""

    def train(self, epoch: int) -> list[Problem]:
        """Training problems of an epoch; if not ``online``, those of epoch 0 in every epoch."""
        epoch = epoch if self.online else 0
        return [self.problem(self._draw("train", epoch, index)) for index in range(self.size.train)]

    def valid(self) -> list[Problem]:
        """Validation problems, without duplicates; the same at every call."""
        return self._distinct("valid", self.size.valid)

    def test(self) -> list[Problem]:
        """Test problems, without duplicates; the same at every call."""
        return self._distinct("test", self.size.test)

    def vocabulary(self) -> list[str]:
        """Texts that together contain every word of any problem."""
        return [self.problem([element] * self.num_terms).question for element in self.elements]

    def problem(self, terms: Sequence[str]) -> Problem:
        """The problem with these terms."""
        results = list(itertools.accumulate(terms, self.combine))[1:]
        return Problem(f" {self.operator} ".join(terms) + " =", tuple(results), results[-1])

    def _draw(self, split: str, epoch: int, index: int) -> tuple[str, ...]:
        numbers = random.Random(f"{self.seed}/{split}/{epoch}/{index}")
        while True:
            terms = tuple(numbers.choice(self.elements) for _ in range(self.num_terms))
            if split_of_terms(terms) == split:
                return terms

    def _distinct(self, split: str, count: int) -> list[Problem]:
        draws = (self._draw(split, 0, index) for index in itertools.count())
        chosen: dict[tuple[str, ...], None] = {}
        while len(chosen) < count:
            chosen[next(draws)] = None
        return [self.problem(terms) for terms in chosen]

    def _check_sizes(self) -> None:
        space = len(self.elements) ** self.num_terms
        for split in ("valid", "test"):
            wanted = getattr(self.size, split)
            # Up to 200,000 problems are counted exactly; above that, half the expected size of one bucket is safe.
            available = space // BUCKETS // 2 if space > 200_000 else self._count(split)
            if wanted > available:
                raise DataError(
                    f"data.size.{split}={wanted}: {self.num_terms} terms of {len(self.elements)} elements give only "
                    f"{available} {split} problems; "
                    f"set {f'data.size.{split}={available} or less, or ' if available else ''}"
                    "a larger data.num_terms"
                )

    def _count(self, split: str) -> int:
        return sum(split_of_terms(terms) == split for terms in itertools.product(self.elements, repeat=self.num_terms))


class ModularSum(Chains):
    """Running sums modulo m."""

    operator: ClassVar[str] = "+"

    def __init__(self, seed: int, size: SplitSizes, num_terms: int, online: bool, modulus: int) -> None:
        self.modulus = modulus
        super().__init__(seed, size, num_terms, online)

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        return cls(seed, data.size, data.num_terms, data.online, data.modulus)

    @property
    def elements(self) -> Sequence[str]:
        """The numbers 0 … m-1."""
        return [str(number) for number in range(self.modulus)]

    def combine(self, left: str, right: str) -> str:
        """The sum modulo m."""
        return str((int(left) + int(right)) % self.modulus)


class PermutationProduct(Chains):
    """Running products in the symmetric group of three elements, the smallest non-commutative group."""

    operator: ClassVar[str] = "*"
    letters: ClassVar[str] = "abc"
    _elements: ClassVar[tuple[str, ...]] = tuple("".join(p) for p in itertools.permutations("abc"))

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        return cls(seed, data.size, data.num_terms, data.online)

    @property
    def elements(self) -> Sequence[str]:
        """The six permutations, each written as the images of a, b and c."""
        return self._elements

    def combine(self, left: str, right: str) -> str:
        """``left`` after ``right``: x goes to left[right[x]]."""
        return "".join(left[self.letters.index(image)] for image in right)
