"""Prompts, and a listener that keeps the completions, for the tests of generation."""

from conftest import VOCABULARY

from coconut_ds.generation.rows import Listener
from coconut_ds.methods.layout import IGNORE, Layout

FAMILIES = ["gpt2", "llama", "qwen3"]

LATENT = VOCABULARY - 1


def prompt_of(question: list[int], count: int, after: tuple[int, ...] = (2,)) -> Layout:
    ids = [*question, *[LATENT] * count, *after]
    return Layout(ids, [IGNORE] * len(ids), len(question) if count else len(ids), count)


class Ends(Listener):
    """Keeps the completions by ticket."""

    def __init__(self):
        self.completions = {}

    def on_done(self, ticket, completion):
        assert ticket not in self.completions
        self.completions[ticket] = completion
