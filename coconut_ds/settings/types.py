"""Types of configuration values that several groups share."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from coconut_ds.methods import METHODS

Positive = Annotated[int, Field(gt=0, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass(frozen=True, eq=False)
class NameIn:
    """Validator that accepts the names of a registry; ``--help=GROUP`` lists them as the allowed values."""

    registry: Collection[str]
    what: str
    """What a name denotes, in the singular; used in the error message."""

    def __call__(self, value: str) -> str:
        """Returns the name unchanged.

        Raises:
            ValueError: the registry has no such name; the message lists all names.
        """
        if value not in self.registry:
            raise ValueError(f"unknown {self.what}; expected one of {', '.join(sorted(self.registry))}")
        return value


MethodName = Annotated[str, AfterValidator(NameIn(METHODS, "method"))]
