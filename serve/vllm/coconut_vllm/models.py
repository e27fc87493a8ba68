"""vLLM's own models, extended so that they think: they keep the states of a step and bring the plugin's state.

vLLM looks the classes up by name (``registration.py``).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from coconut_vllm.card import CARD
from coconut_vllm.errors import CannotTell, NotSupported
from coconut_vllm.feed import FEED_FILE, Projection, load_feed
from coconut_vllm.files import located
from coconut_vllm.limits import check_engine
from coconut_vllm.recognition import card_of
from coconut_vllm.state import ThinkingState


class Thinking:
    """Comes before a model class of vLLM."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_engine(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        card = card_of(vllm_config.model_config)
        assert card is not None
        self.card = card
        self._states: Tensor | None = None
        self._is_heard = False
        """Whether the state exists that takes the states of each step."""

    def get_model_state_cls(self) -> type[ThinkingState]:
        """Model Runner V2 asks for it; other runners do not, and are then refused by ``compute_logits``."""
        self._is_heard = True
        return ThinkingState

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """The logits of states, which are kept for the sampler.

        Raises:
            NotSupported: nothing takes them, so the model would not think.
        """
        if not self._is_heard:
            raise NotSupported(
                "this model runner has not asked the model for its state, so the model would not think; set "
                "VLLM_USE_V2_MODEL_RUNNER=1"
            )
        self._states = hidden_states
        logits: Tensor | None = super().compute_logits(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return logits

    def take_states(self) -> Tensor:
        """The states [B, D] of the latest ``compute_logits``, which may be asked for once."""
        states, self._states = self._states, None
        assert states is not None, "the sampler was called without logits of this model"
        return states

    def feed(self, vllm_config: Any, device: torch.device) -> Projection | None:
        """The module that thoughts pass before they are fed back; None if the card names none.

        Raises:
            NotSupported: the weights are missing, do not fit, or no card names them.
        """
        model = vllm_config.model_config
        try:
            path = located(str(model.model), FEED_FILE, model.revision, getattr(model, "hf_token", None))
        except CannotTell:
            # Without a feed in the card, the file is not needed, so a cache may lack it.
            if self.card.feed is not None:
                raise
            path = None
        if self.card.feed is None and path is None:
            return None
        if self.card.feed is None or path is None:
            raise NotSupported(
                f"{model.model}: {CARD} and {FEED_FILE} are not of one checkpoint: the card names "
                f"{self.card.feed or 'no feed'}, and the file {'exists' if path else 'is missing'}; copy it again"
            )
        return load_feed(Path(path), self.card.feed, model.get_hidden_size(), model.dtype, device)


class CoconutGPT2LMHeadModel(Thinking, GPT2LMHeadModel):
    """GPT-2."""


class CoconutLlamaForCausalLM(Thinking, LlamaForCausalLM):
    """Llama."""


class CoconutMistralForCausalLM(Thinking, MistralForCausalLM):
    """Mistral."""


class CoconutQwen2ForCausalLM(Thinking, Qwen2ForCausalLM):
    """Qwen2."""


class CoconutQwen3ForCausalLM(Thinking, Qwen3ForCausalLM):
    """Qwen3."""
