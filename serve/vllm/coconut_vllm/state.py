"""What Model Runner V2 asks for in each step: the input embeddings, with thoughts among them.

The calls come in this order: ``remove_request`` (finished or preempted), ``add_request``, ``apply_staged_writes``,
``prepare_inputs``, the model's forward pass, its ``compute_logits``, the sampler.
"""

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from coconut_vllm.recognition import most_thoughts
from coconut_vllm.sampler import ThinkingSampler
from coconut_vllm.thoughts import PLAN, Plan, Thoughts

log = init_logger(f"vllm.{__name__}")


class ThinkingState(DefaultModelState):
    """vLLM's state of a language model, which also holds the thoughts."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.feed = model.feed(vllm_config, device)
        card = model.card
        most = most_thoughts(vllm_config, card) if card.method.thinks else 0
        size = self.inputs_embeds_size
        self.thoughts = Thoughts(self.max_num_reqs, most, size, card.markers, self.dtype, device)
        # Graphs read it at the address that it had when they were captured.
        self.embeds = torch.zeros(self.max_num_tokens, size, dtype=self.dtype, device=device)
        log.info(
            "coconut-vllm: method %s, %d thoughts by default and %d at most, whose states take %.1f MB",
            *(card.name, card.number, most, self.thoughts.num_bytes / 1e6),
        )

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Notes a new or resumed request."""
        super().add_request(req_index, new_req_data)
        given = (new_req_data.sampling_params.extra_args or {}).get(PLAN)
        if given is None:
            raise RuntimeError(f"request {new_req_data.req_id} has not been checked by the plugin's front end")
        plan = Plan(*given) if given else None
        length = len(new_req_data.prompt_token_ids)
        self.thoughts.enter(new_req_data.req_id, req_index, plan, new_req_data.prefill_token_ids, length)

    def remove_request(self, req_id: str) -> None:
        """Notes that a request is finished or preempted."""
        super().remove_request(req_id)
        self.thoughts.leave(req_id)

    def apply_staged_writes(self) -> None:
        """Tells the device about new requests."""
        super().apply_staged_writes()
        self.thoughts.apply()

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """The model's inputs for a step."""
        total = input_batch.num_tokens
        starts = input_batch.query_start_loc[1 : input_batch.num_reqs + 1]
        rows = torch.searchsorted(starts, torch.arange(total, device=self.device, dtype=starts.dtype), right=True)
        embedded = self.model.embed_input_ids(input_batch.input_ids[:total])
        slots = input_batch.idx_mapping[rows]
        self.thoughts.embed(embedded, input_batch.positions[:total], slots, self.embeds[:total])
        return super().prepare_inputs(input_batch, req_states) | self._inputs(input_batch.num_tokens_after_padding)

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Inputs of the same shapes and addresses, for capturing graphs."""
        return super().prepare_dummy_inputs(num_reqs, num_tokens) | self._inputs(num_tokens)

    def _inputs(self, num_tokens: int) -> dict[str, Any]:
        return {"inputs_embeds": self.embeds[:num_tokens], "input_ids": None}

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        """The sampler that knows about thoughts."""
        return ThinkingSampler(sampler, self.thoughts, self.model, self.feed), None
