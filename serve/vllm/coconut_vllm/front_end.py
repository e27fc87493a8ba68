"""What happens to each request before an engine gets it: checks, encoding as in training, and the plan of its thoughts.

vLLM has no hook for this, so methods of its ``InputProcessor``, which every request passes offline and in the server,
are wrapped; and beam search, which would build its prompts from forced tokens, is refused where it begins.
"""

import inspect
from copy import copy
from dataclasses import astuple
from functools import wraps
from typing import Any

from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from coconut_vllm.card import Card
from coconut_vllm.prompts import Questions
from coconut_vllm.recognition import card_of, most_thoughts
from coconut_vllm.requests import Layout, asked, layout, refuse_parameters, refused
from coconut_vllm.thoughts import PLAN

WRAPPED = "is_wrapped_by_coconut_vllm"


class FrontEnd:
    """Prepares the requests of one engine, whose model thinks."""

    def __init__(self, card: Card, vllm_config: Any, tokenizer: Any) -> None:
        """``tokenizer``: the engine's; None if it only takes token ids."""
        self.card = card
        self.length = vllm_config.model_config.max_model_len
        self.most = most_thoughts(vllm_config, card)
        self.questions = None if tokenizer is None else Questions(tokenizer, card.format)

    def check(self, params: Any, given: dict[str, Any]) -> Layout:
        """Refuses what cannot be served, and decides how the request thinks.

        Args:
            params: its sampling parameters.
            given: the other arguments of ``process_inputs``, by name.

        Raises:
            VLLMValidationError: see ``requests``.
        """
        if not isinstance(params, SamplingParams):
            raise refused("this model only generates text; use /v1/completions or /v1/chat/completions")
        if given.get("lora_request") is not None:
            raise refused("lora_request: not supported by a model that thinks; merge the adapter into the model")
        if given.get("priority"):
            raise refused(f"priority is {given['priority']}: requests are served in order; leave it out", "priority")
        if given.get("resumable"):
            raise refused("input that arrives in parts is not supported; send the whole prompt")
        refuse_parameters(params, self.card.markers.all)
        made = layout(self.card, asked(params.extra_args), self.most)
        if params.min_tokens and not made.is_fixed:
            # vLLM counts thoughts as tokens, and how many there will be is not known.
            raise refused(
                f"min_tokens is {params.min_tokens}: not supported where the model decides how much it thinks "
                "(min_thoughts, max_thoughts, the method coconut_reversed); leave it out",
                "min_tokens",
            )
        return made

    def prompt(self, request: Any, prompt: Any) -> list[int]:
        """The token ids of the question, encoded as in training if it is a text; token ids are used unchanged."""
        if request.prompt_token_ids is None or request.prompt_embeds is not None:
            raise refused("embeddings as prompts are not supported by a model that thinks; send text or token ids")
        if request.mm_features:
            raise refused("images, audio and video are not supported by this model; send text or token ids")
        ids = list(request.prompt_token_ids)
        if found := sorted(set(ids) & set(self.card.markers.all)):
            raise refused(
                f"prompt: holds markers of thoughts (token ids {found}), which the engine adds itself; leave them out",
                "prompt",
            )
        text = prompt if isinstance(prompt, str) else prompt.get("prompt") if isinstance(prompt, dict) else None
        if text is None or self.questions is None:
            return ids
        if not self.questions.is_whole(text, ids):
            raise refused(
                "prompt: its token ids are not those of the whole text; leave truncate_prompt_tokens out, and give "
                "either a text or token ids",
                "prompt",
            )
        return self.questions.encode(text)

    def complete(self, request: Any, prompt: Any, made: Layout) -> Any:
        """Adds markers, room for thoughts and the plan to a request that vLLM has accepted.

        Raises:
            VLLMValidationError: the prompt contains markers, or is too long.
        """
        ids = [*self.prompt(request, prompt), *made.after_question]
        room = self.length - len(ids)
        if room < made.most_extra + 1:
            raise refused(
                f"prompt: has {len(ids)} tokens with its markers, and needs {made.most_extra} more for thoughts and at "
                f"least 1 for text; the model's context is {self.length}; shorten it, or ask for fewer thoughts",
                "prompt",
            )
        params = copy(request.sampling_params)
        params.extra_args = {**(params.extra_args or {}), PLAN: list(astuple(made.plan)) if made.plan else []}
        params.max_tokens = min(params.max_tokens + made.most_extra, room)
        if params.min_tokens:
            params.min_tokens = min(params.min_tokens + made.most_extra, params.max_tokens)
        request.prompt_token_ids, request.sampling_params = ids, params
        return request


def _is_checked(request: Any) -> bool:
    """Whether a request has passed ``FrontEnd.complete``."""
    params = request.sampling_params
    return params is not None and PLAN in (params.extra_args or {})


def _init(original: Any) -> Any:
    @wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        card = card_of(vllm_config.model_config)
        self.coconut = None if card is None else FrontEnd(card, vllm_config, self.tokenizer)

    return init


def _process_inputs(original: Any) -> Any:
    signature = inspect.signature(original)

    @wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        front_end: FrontEnd | None = self.coconut
        if front_end is None:
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        made = front_end.check(given["params"], given)
        return front_end.complete(original(self, *args, **kwargs), given["prompt"], made)

    return process_inputs


def _assign_request_id(original: Any) -> Any:
    # The original is a static method. As an ordinary one it also gets the processor.
    @wraps(original)
    def assign_request_id(self: Any, request: Any) -> None:
        if self.coconut is not None and not _is_checked(request):
            raise refused("a prepared EngineCoreRequest is not supported by a model that thinks; pass its prompt")
        original(request)

    return assign_request_id


def _beam_search(original: Any) -> Any:
    @wraps(original)
    def beam_search(self: Any, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine_client if hasattr(self, "engine_client") else self.llm_engine
        if engine.input_processor.coconut is not None:
            raise refused("beam search is not supported by a model that thinks; leave it out", "use_beam_search")
        return original(self, *args, **kwargs)

    return beam_search


def install() -> None:
    """Wraps vLLM's methods; a second call changes nothing."""
    for owner, name, wrap in (
        (InputProcessor, "__init__", _init),
        (InputProcessor, "process_inputs", _process_inputs),
        (InputProcessor, "assign_request_id", _assign_request_id),
        (BeamSearchOfflineMixin, "beam_search", _beam_search),
        (BeamSearchOnlineMixin, "beam_search", _beam_search),
    ):
        original = getattr(owner, name)
        if not hasattr(original, WRAPPED):
            wrapper = wrap(original)
            setattr(wrapper, WRAPPED, True)
            setattr(owner, name, wrapper)
