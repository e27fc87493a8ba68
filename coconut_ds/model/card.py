"""The card of a checkpoint, the file ``coconut.json``: how the model thinks, and how it was trained."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from coconut_ds.data.tokens import MARKERS, PAUSE
from coconut_ds.errors import CheckpointError
from coconut_ds.formats import FORMATS, TEXT, Format
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.feed import FeedSpec

CARD = "coconut.json"
MAX_LATENTS = 65_536
"""Largest number of thoughts, pause tokens or passes over them that a card may name. A sequence needs a position for
each, and every request without a number of its own makes that many."""
MAX_NUMBER = 1_000_000_000
"""Largest value of the card's other numbers."""


@dataclass(frozen=True)
class ModelCard:
    """The content of ``coconut.json``."""

    method: str
    """Name of the training method."""
    stage: int
    """Curriculum stage that the model was trained up to."""
    num_thoughts: int
    """Number of thoughts at inference."""
    c_thought: int
    """Thoughts for each step that they replace."""
    max_latent_stage: int
    """Stage after which the number of thoughts no longer grows."""
    marker_ids: dict[str, int]
    """Token id of each marker."""
    num_pauses: int = 0
    """Number of pause tokens at inference."""
    tokens_per_epoch: int = 8
    """Step tokens that the method ``icot`` removes from one stage to the next."""
    format: str = TEXT.name
    """Name of the text format (``formats.FORMATS``)."""
    iterations: int | None = None
    """Number of passes over all thoughts at once (``Parallel.iterations``). None: thoughts are computed one after
    another, or if ``looped``, there is one pass for each block of ``c_thought`` thoughts."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the checkpoint: epoch, global_step, accuracy, stage switches, versions, configuration."""
    feed: FeedSpec | None = None
    """What a thought goes through before it is fed back; None: it is fed back as it is."""
    looped: bool = False
    """Whether all thoughts are computed at once by ``thinking=looped``; otherwise, if there are ``iterations``, by
    ``jacobi``."""
    chat_template: bool = False
    """Whether questions go through the chat template of the checkpoint's tokenizer (``Format.chat_template``)."""

    @classmethod
    def of(
        cls,
        method: Method,
        stage: int,
        spec: CurriculumSpec,
        format: str,
        marker_ids: dict[str, int],
        provenance: dict[str, Any] | None = None,
        parallel: Parallel | None = None,
        feed: FeedSpec | None = None,
        chat_template: bool = False,
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
            None if parallel is None else parallel.iterations,
            provenance or {},
            feed,
            parallel is not None and parallel.kind == "looped",
            chat_template,
        )

    def as_dict(self) -> dict[str, Any]:
        """The content of the file. Keys that earlier versions lacked are left out if they have their default value."""
        values = asdict(self)
        if self.feed is None:
            del values["feed"]
        for name in ("looped", "chat_template"):
            if not values[name]:
                del values[name]
        return values

    @property
    def parallel(self) -> Parallel | None:
        """How all thoughts are computed at once; None if they are computed one after another."""
        if self.looped:
            return Parallel("looped", self.iterations, max(self.c_thought, 1))
        return None if self.iterations is None else Parallel("jacobi", self.iterations)

    @property
    def num_latents(self) -> int:
        """Number of thoughts or pause tokens at inference."""
        return self.num_thoughts + self.num_pauses

    def with_latents(self, count: int) -> "ModelCard":
        """A copy with ``count`` thoughts, or pause tokens if the method uses those.

        With fewer latents than in training, the copy also gets the earlier stage that had ``count`` latents, at which
        the model still writes more of the steps.
        """
        fewer = METHODS[self.method].has_curriculum and self.c_thought and count < self.num_latents
        changed = replace(self, stage=count // self.c_thought) if fewer else self
        if METHODS[self.method].pauses:
            return replace(changed, num_pauses=count)
        return replace(changed, num_thoughts=count)

    @property
    def spec(self) -> CurriculumSpec:
        """The curriculum numbers that layouts depend on.

        The number of latents at inference is not computed from them: use ``num_latents``.
        """
        return CurriculumSpec(self.c_thought, self.max_latent_stage, tokens_per_epoch=self.tokens_per_epoch)

    @property
    def text_format(self) -> Format:
        """The text format that ``format`` names, with the chat template if the checkpoint uses it."""
        return replace(FORMATS[self.format], chat_template=self.chat_template)

    def fault(self) -> str | None:
        """A number that is out of range, and what is expected; None if there is none."""
        for name in ("num_thoughts", "num_pauses", "stage", "c_thought", "max_latent_stage", "tokens_per_epoch"):
            most = MAX_LATENTS if name.startswith("num_") else MAX_NUMBER
            if not 0 <= (value := getattr(self, name)) <= most:
                return f"{name} is {value}; expected 0 to {most}"
        if self.iterations is not None and not 1 <= self.iterations <= MAX_LATENTS:
            return f"iterations is {self.iterations}; expected 1 to {MAX_LATENTS}, or null"
        return None

    @classmethod
    def read(cls, folder: Path) -> "ModelCard | None":
        """Reads the card of a model folder; None if it has none, as a plain Hugging Face folder.

        Raises:
            CheckpointError: the file exists, but is not a valid card of this version.
        """
        path = folder / CARD
        if not path.is_file():
            return None
        try:
            card = TypeAdapter(cls).validate_json(path.read_text(encoding="utf-8"), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CheckpointError(f"{path}: is not a valid {CARD} of this project ({where}: {first['msg']})") from error
        if card.method not in METHODS:
            raise CheckpointError(
                f"{path}: unknown method {card.method!r}; expected one of {', '.join(sorted(METHODS))}"
            )
        if card.format not in FORMATS:
            raise CheckpointError(f"{path}: unknown format {card.format!r}; expected one of {', '.join(FORMATS)}")
        if fault := card.fault():
            raise CheckpointError(f"{path}: {fault}")
        if card.feed is not None and (fault := card.feed.fault()):
            raise CheckpointError(f"{path}: {fault}")
        return card


def marker_table(markers: MarkerIds) -> dict[str, int]:
    """The id of each marker, by its spelling, as the card stores them."""
    return dict(zip((*MARKERS, PAUSE), markers.all(), strict=False))
