"""``pause_as_thought`` (the paper's "pause as thought"): ``coconut`` with a pause token in place of each thought.

No hidden state is fed back, so one forward pass computes the whole sequence. The comparison with ``coconut`` separates
the effect of additional positions from the effect of the feedback.
"""

from typing import ClassVar, Literal

from coconut_ds.methods.base import Ids, MarkerIds, Segment
from coconut_ds.methods.coconut import Coconut


class PauseAsThought(Coconut):
    """Question, ``<s>``, pause tokens, ``<e>``, **steps[k:], answer**. The loss is on the bold parts."""

    name: ClassVar[str] = "pause_as_thought"
    pauses: ClassVar[bool] = True
    unit: ClassVar[Literal["step", "token"]] = "step"

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """The segments of ``coconut``, with pause tokens in place of the thoughts."""
        assert markers.pause is not None, "the tokenizer of a method with pause tokens has <|pause|>"
        pauses = Segment([markers.pause] * num_latents)
        return [
            pauses if segment.thought else segment
            for segment in super().segments(question, written, answer, num_latents, markers)
        ]
