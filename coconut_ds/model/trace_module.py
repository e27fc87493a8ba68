"""The latent loop as one plain module, for tools that look into modules: PyTorch's hooks, nnsight, TransformerLens.

In it every thought passes through a submodule of its own, ``thoughts[i]``. What a hook makes of that submodule's output
is fed back in place of the thought, and the later thoughts are computed from it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from coconut_ds.errors import DataError
from coconut_ds.methods.layout import Layout
from coconut_ds.model.latent_loop import LatentLoop


class TraceModule(nn.Module):
    """Answers one question with thoughts that are computed one after another.

    ``model`` is the language model. Its blocks are called once for the question, once for each thought (with one
    position), and once for the tokens after the thoughts.
    """

    def __init__(self, loop: LatentLoop, prompt: Callable[[str], Layout], count: int) -> None:
        """
        Args:
            loop: the latent loop around the model.
            prompt: makes the prompt of a question.
            count: number of thoughts, L.
        """
        super().__init__()
        self.model = loop.model
        self.thoughts = nn.ModuleList(nn.Identity() for _ in range(count))
        """L modules; number i, from 0, gets and returns the vector [1, D] that is fed back as thought i + 1."""
        # In a list, so that the loop's modules are not registered a second time under other names.
        self._loop, self._prompt = [loop], prompt

    def forward(self, question: str, continuation: Sequence[int] = ()) -> Tensor:
        """[C + 1, V] the logits after the prompt, and after each of the C tokens of ``continuation``.

        Raises:
            DataError: the prompt has another number of thoughts.
        """
        loop, prompt = self._loop[0], self._prompt(question)
        if prompt.num_thoughts != len(self.thoughts):
            raise DataError(f"the prompt has {prompt.num_thoughts} thoughts; expected {len(self.thoughts)}")
        first, ids = prompt.first_thought, [*prompt.input_ids, *continuation]
        cache = DynamicCache(config=self.model.config)
        states = self._pass(self._embedded(ids[:first]), cache)
        for thought in self.thoughts:
            states = self._pass(thought(loop.fed(states[:, -1])).unsqueeze(1), cache)
        after = ids[first + len(self.thoughts) :]
        if after:
            states = torch.cat([states[:, -1:], self._pass(self._embedded(after), cache)], dim=1)
        logits: Tensor = loop.head(states[0, -1 - len(continuation) :])
        return logits

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self._loop[0].embed(torch.tensor([list(ids)], device=self._loop[0].device))

    def _pass(self, embeds: Tensor, cache: DynamicCache) -> Tensor:
        """[1, Q, D] the states of the next Q positions."""
        states: Tensor = self.model.base_model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return states
