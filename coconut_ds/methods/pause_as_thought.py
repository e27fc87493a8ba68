"""``pause_as_thought`` (the paper's "pause as thought"): ``coconut`` with a learned token in place of each thought.

Nothing is fed back, so one pass is enough: it tells what more positions give from what the feedback gives.
"""

from typing import ClassVar

from coconut_ds.methods.base import Ids, MarkerIds, Segment
from coconut_ds.methods.coconut import Coconut


class PauseAsThought(Coconut):
    """Q ``<s>`` pauses ``<e>`` **s[k:] A**."""

    name: ClassVar[str] = "pause_as_thought"
    pauses: ClassVar[bool] = True

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """As ``coconut``, thoughts replaced."""
        assert markers.pause is not None, "the tokenizer of a method with pauses has the marker"
        pauses = Segment([markers.pause] * num_latents)
        return [
            pauses if segment.thought else segment
            for segment in super().segments(question, written, answer, num_latents, markers)
        ]
