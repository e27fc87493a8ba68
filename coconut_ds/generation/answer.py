"""What a model generated for a question, as ``Reasoner.generate`` returns it."""

from dataclasses import dataclass

import torch

from coconut_ds.generation.requests import Completion


@dataclass(frozen=True)
class Answer:
    """What a model generated for one question."""

    question: str
    """The question as given."""
    text: str
    """The generated text up to the first stop string, without markers and end of sequence."""
    answer: str
    """The final answer in the text, as scoring extracts it; in the default format, what comes after the last ``#``."""
    completion: Completion
    """Tokens, thoughts, and why generation ended."""

    @property
    def thoughts(self) -> torch.Tensor | None:
        """[L, D] the hidden states of the L thoughts, before any feed; None without ``keep_thoughts``."""
        return self.completion.thoughts
