"""Types of fields that several bodies have, and the base class of all objects in requests."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.noise_kinds import MOST_SIGMA, ThoughtNoiseKind, noise_fault
from serve.api import neutral
from serve.api.neutral import Neutral
from serve.errors import RequestError


def _whole(value: Any) -> Any:
    """Turns 16.0 into 16: JSON has one type for numbers, and some clients write all of them as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=2**31 - 1)]


def _encodable(text: str) -> str:
    """Refuses lone surrogates (``"\\ud800"``), which JSON can contain but UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"contains a lone surrogate at character {error.start}; send valid Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
Ids = Annotated[list[Whole], Field(fail_fast=True)]
"""Of lists, only the first wrong item is reported: a body has room for 500,000 of them."""


def _add_neutral(schema: dict[str, Any], body: type["Body"]) -> None:
    """Lists the neutral fields of a body in its JSON schema."""
    schema.setdefault("properties", {}).update(neutral.properties_of(body.neutral_fields))


class Body(BaseModel):
    """Base of all objects in requests: refuses unknown fields and does not convert types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_add_neutral)
    neutral_fields: ClassVar[Mapping[str, Neutral]] = {}
    """Further fields, which must have a value that changes nothing."""

    @model_validator(mode="before")
    @classmethod
    def _only_own_fields(cls, values: Any) -> Any:
        """Removes neutral fields and refuses unknown ones, of which a body may have thousands."""
        if not isinstance(values, dict):
            return values
        own, known = neutral.without_neutral(values, cls.neutral_fields, cls.__name__), cls.model_fields
        unknown = next((name for name in own if name not in known), None)
        if unknown is None:
            return own
        # pydantic reports the first unknown field, after the faults of known ones.
        return {name: value for name, value in own.items() if name in known or name == unknown}


Seed = Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)]
ThoughtNoise = Annotated[
    ThoughtNoiseKind | None,
    Field(
        description="Noise on what thoughts feed back, so that several continuations think differently; default none. "
        "gaussian: thought_sigma times a normal number is added to each number. dropout: one mask for each "
        "continuation sets a share of thought_dropout of the numbers to 0 and divides the others by 1 - thought_dropout"
    ),
]
ThoughtSigma = Annotated[
    Annotated[float, Field(ge=0, le=MOST_SIGMA)] | None,
    Field(description="Standard deviation of thought_noise=gaussian, in the units of hidden states"),
]
ThoughtDropout = Annotated[
    Annotated[float, Field(ge=0, lt=1)] | None,
    Field(description="Share of the numbers that thought_noise=dropout sets to 0"),
]


def noise_of(kind: ThoughtNoiseKind | None, sigma: float | None, dropout: float | None) -> NoiseSettings:
    """The noise that a body asks for with ``thought_noise``, ``thought_sigma`` and ``thought_dropout``.

    Raises:
        RequestError: a size is missing, or belongs to the other kind of noise; the error names the field.
    """
    if fault := noise_fault(kind or "none", sigma, dropout):
        raise RequestError(fault, fault.partition("=")[0])
    return NoiseSettings.of(kind or "none", sigma, dropout)
