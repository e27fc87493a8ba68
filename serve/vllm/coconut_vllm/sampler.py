"""vLLM's sampler, which writes the tokens of thoughts and markers instead of sampling them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.sampler import Sampler

from coconut_vllm.thoughts import Decision, Thoughts


class ThinkingSampler(Sampler):
    """Takes the place of the sampler that vLLM made, with all that it holds."""

    def __init__(self, sampler: Sampler, thoughts: Thoughts, model: Any, feed: Callable[[Tensor], Tensor] | None):
        """``model``: holds the states of the latest step (``models.Thinking``)."""
        self.__dict__.update(sampler.__dict__)
        self.thoughts, self.model, self.feed = thoughts, model, feed
        self.decision: Decision | None = None

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """Samples a token for each request of a step; see the base class."""
        slots = input_batch.idx_mapping
        if input_batch.num_draft_tokens or len(logits) != len(slots):
            raise RuntimeError("found draft tokens; a model that thinks must be served without speculative decoding")
        next_positions = input_batch.positions[input_batch.logits_indices] + 1
        is_writing = next_positions >= self.req_states.prefill_len.gpu[slots]
        decision = self.thoughts.decide(logits, self.model.take_states(), self.feed, slots, next_positions, is_writing)
        self.decision = decision
        output = super().__call__(logits, input_batch)
        sampled = output.sampled_token_ids.view(-1)
        self.thoughts.begin_where_started(decision, sampled, slots, next_positions)
        return output

    def sample(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The sampled tokens [B] with the forced ones among them, and the processed logits."""
        sampled, processed = super().sample(*args, **kwargs)
        assert self.decision is not None
        forced = self.decision.forced.to(sampled.dtype)
        return torch.where(forced >= 0, forced, sampled), processed
