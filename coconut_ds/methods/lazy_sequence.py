"""A sequence whose items are made when they are accessed."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import SupportsIndex, TypeVar, overload

Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """Subclasses define ``__len__`` and ``_item``."""

    @abstractmethod
    def _item(self, index: int) -> Item:
        """The item at ``index``, which is neither negative nor out of range."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Item | list[Item]:
        # A range handles negative indices, indices out of range and slices.
        found = range(len(self))[index]
        return self._item(found) if isinstance(found, int) else [self._item(each) for each in found]

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, range(len(self)))
