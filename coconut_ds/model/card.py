"""The card of a checkpoint, ``coconut.json``: how the model thinks, and where it comes from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from coconut_ds.data.tokens import MARKERS, PAUSE
from coconut_ds.errors import CheckpointError
from coconut_ds.formats import FORMATS, TEXT, Format
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method

CARD = "coconut.json"


@dataclass(frozen=True)
class ModelCard:
    """How a checkpoint thinks: the content of ``coconut.json``."""

    method: str
    stage: int
    num_thoughts: int
    """Thoughts at inference."""
    c_thought: int
    max_latent_stage: int
    marker_ids: dict[str, int]
    num_pauses: int = 0
    """Pause tokens at inference."""
    tokens_per_epoch: int = 8
    format: str = TEXT.name
    """A name of ``formats``."""
    iterations: int | None = None
    """Passes over all thoughts at once (Jacobi); None: thoughts come one by one."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: epoch, global_step, accuracy, stage switches, versions, configuration."""

    @classmethod
    def of(
        cls,
        method: Method,
        stage: int,
        spec: CurriculumSpec,
        format: str,
        marker_ids: dict[str, int],
        provenance: dict[str, Any] | None = None,
        iterations: int | None = None,
    ) -> "ModelCard":
        """The card of a model that was trained up to ``stage``."""
        latents = method.num_latents(stage, None, spec)
        thoughts, pauses = (0, latents) if method.pauses else (latents, 0)
        return cls(
            method.name,
            stage,
            thoughts,
            spec.c_thought,
            spec.max_latent_stage,
            marker_ids,
            pauses,
            spec.tokens_per_epoch,
            format,
            iterations,
            provenance or {},
        )

    @property
    def num_latents(self) -> int:
        """Thoughts or pauses at inference."""
        return self.num_thoughts + self.num_pauses

    def with_latents(self, count: int) -> "ModelCard":
        """The same with another number of thoughts, or of pauses where the method pauses.

        With fewer than it was trained to, the model writes more steps: those of an earlier stage.
        """
        fewer = METHODS[self.method].has_curriculum and self.c_thought and count < self.num_latents
        changed = replace(self, stage=count // self.c_thought) if fewer else self
        if METHODS[self.method].pauses:
            return replace(changed, num_pauses=count)
        return replace(changed, num_thoughts=count)

    @property
    def spec(self) -> CurriculumSpec:
        """What layouts need to know; the number of latents at inference is the card's own."""
        return CurriculumSpec(self.c_thought, self.max_latent_stage, tokens_per_epoch=self.tokens_per_epoch)

    @property
    def text_format(self) -> Format:
        """What ``format`` names."""
        return FORMATS[self.format]

    @classmethod
    def read(cls, folder: Path) -> "ModelCard | None":
        """The card of a model folder; None for a plain Hugging Face folder.

        Raises:
            CheckpointError: it is there and cannot be read.
        """
        path = folder / CARD
        if not path.is_file():
            return None
        try:
            card = TypeAdapter(cls).validate_json(path.read_text(encoding="utf-8"), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CheckpointError(f"{path}: is no {CARD} of this project ({where}: {first['msg']})") from error
        if card.method not in METHODS:
            raise CheckpointError(
                f"{path}: method {card.method!r} is unknown here; expected one of {', '.join(sorted(METHODS))}"
            )
        if card.format not in FORMATS:
            raise CheckpointError(
                f"{path}: format {card.format!r} is unknown here; expected one of {', '.join(FORMATS)}"
            )
        return card


def marker_table(markers: MarkerIds) -> dict[str, int]:
    """Names and ids of the markers, for the card."""
    return dict(zip((*MARKERS, PAUSE), markers.all(), strict=False))
