"""Traces the thoughts of one question: each thought decoded at each layer, with its norm and its nearest tokens.

Sources: decoding with the LM head, arXiv 2412.06769 (figure 4); decoding of every layer with the same head,
    nostalgebraist's
"logit lens" (2020), with the final norm applied once. Thoughts often have larger norms than token embeddings, so the
trace also contains norms and cosines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coconut_ds.formats import extract_answer
from coconut_ds.generation.decoding import DecodedThought, NearToken, decode_thoughts, nearest_tokens, token_id
from coconut_ds.generation.requests import Completion
from coconut_ds.model.support import embedding_weight
from coconut_ds.parts import Parts, all_parts, in_parts
from coconut_ds.probing.cases import Case, Plain, Sample, answered_case, prepare, run_requests, writing_request
from coconut_ds.probing.states import States, layer_states
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class ThoughtView:
    """One thought; for methods with pauses, the state that the model computes where a pause is fed instead.

    With a feed, the thought itself is decoded. Norm and cosines, which compare it with token embeddings, are those of
    what the feed makes of it.
    """

    number: int
    """Number of the thought, from 1."""
    decoded: DecodedThought
    """The thought, before any feed, decoded with the LM head; the last element of ``layers``."""
    layers: tuple[DecodedThought, ...]
    """The state decoded at each layer, from layer 0 (the input of the first block) to the last."""
    norm: float
    """The norm of the thought, after any feed."""
    cosine_to_previous: float | None
    """Cosine similarity to the previous thought, both after any feed; None for the first thought."""
    nearest: tuple[NearToken, ...]
    """The tokens whose input embeddings have the largest cosine similarity with the thought, after any feed."""


@dataclass(frozen=True)
class ThoughtTrace(Plain):
    """A question with all its thoughts, decoded."""

    question: str
    method: str
    pauses: bool
    """Whether pauses were fed instead of thoughts."""
    thoughts: tuple[ThoughtView, ...]
    last: DecodedThought
    """The state from which the first token of the text is chosen."""
    embedding_norm: float
    """Mean norm of the input embeddings of all tokens, for comparison with the thoughts' norms."""
    written_before: str
    """The text that the model wrote before it started to think, if it decides that itself."""
    text: str
    answer: str
    finish_reason: str


def trace_thoughts(
    reasoner: Reasoner,
    questions: str | Sequence[str],
    n_thoughts: int | None = None,
    *,
    top_k: int = 5,
    tokens: Sequence[str] = (),
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    sample: Sample | None = None,
) -> list[ThoughtTrace]:
    """Answers each question and traces its thoughts.

    Args:
        reasoner: the model.
        questions: one or several.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        top_k: number of likeliest tokens to return for each state.
        tokens: single tokens whose rank and probability to return for each state (for example a target and a foil).
        temperature: temperature of the softmax that decodes the states.
        max_new_tokens: length limit of the generated text, in tokens.
        sample: which sample of each question, with noise in its thoughts. Each thought is decoded as the model computes
            it, before its own noise. None: no noise.

    Raises:
        DataError: a question is too long, a token is unknown, or thoughts are requested and the method does not think.
    """
    question_list = [questions] if isinstance(questions, str) else list(questions)
    chosen = [token_id(reasoner.backbone.tokenizer, text) for text in tokens]
    cases = prepare(reasoner, question_list, n_thoughts, max_new_tokens, sample)
    made = run_requests(reasoner, [writing_request(case, reasoner, max_new_tokens) for case in cases])
    fed = [vectors for one in made if (vectors := one.fed) is not None]
    return [
        all_parts(_trace(reasoner, case, states, completion, top_k, chosen, temperature))
        for case, completion, states in zip(cases, made, layer_states(reasoner, cases, fed), strict=True)
    ]


@in_parts
def trace_of(
    reasoner: Reasoner,
    question: str,
    completion: Completion,
    num_latents: int,
    *,
    top_k: int = 5,
    tokens: Sequence[str] = (),
) -> Parts[ThoughtTrace]:
    """Traces the thoughts of a question that was already answered.

    Args:
        reasoner: the model.
        question: the question.
        completion: its completion, generated with ``keep_thoughts``.
        num_latents: number of thoughts or pauses that were requested.
        top_k: see ``trace_thoughts``.
        tokens: see ``trace_thoughts``.

    Raises:
        DataError: a token is unknown.
    """
    chosen = [token_id(reasoner.backbone.tokenizer, text) for text in tokens]
    pauses = reasoner.prompter.method.pauses
    case = answered_case(reasoner, question, num_latents if pauses else completion.num_thoughts, completion.tokens)
    fed = torch.stack(list(case.given.values())) if case.given else completion.fed
    assert fed is not None, "the completion must keep its thoughts"
    (states,) = yield from layer_states.parts(reasoner, [case], [fed])
    return (yield from _trace(reasoner, case, states, completion, top_k, chosen, 1.0))


def _trace(
    reasoner: Reasoner,
    case: Case,
    states: States,
    completion: Completion,
    top_k: int,
    chosen: Sequence[int],
    temperature: float,
) -> Parts[ThoughtTrace]:
    limit, count = reasoner.pass_positions, states.layers.shape[1]
    decoded: list[list[DecodedThought]] = []
    for layers in states.layers.split(len(states.layers) if limit is None else max(1, limit // count)):
        decoded += decode_thoughts(reasoner.loop, reasoner.backbone.tokenizer, layers, top_k, chosen, temperature)
        yield None
    prompter = reasoner.prompter
    text = prompter.text(completion.tokens)
    return ThoughtTrace(
        question=case.question,
        method=reasoner.card.method,
        pauses=prompter.method.pauses,
        thoughts=_views(reasoner, case, states, decoded),
        last=decoded[-1][-1],
        embedding_norm=embedding_norm(reasoner),
        written_before=prompter.text(case.written),
        text=text,
        answer=extract_answer(text, reasoner.card.text_format),
        finish_reason=completion.finish_reason,
    )


def embedding_norm(reasoner: Reasoner) -> float:
    """Mean norm of the input embeddings of all tokens."""
    table = embedding_weight(reasoner.backbone.model.get_input_embeddings())
    return float(table.detach().float().norm(dim=-1).mean())


def _views(
    reasoner: Reasoner, case: Case, states: States, decoded: list[list[DecodedThought]]
) -> tuple[ThoughtView, ...]:
    if not case.num_latents:
        return ()
    inputs: Tensor = states.inputs
    nearest = nearest_tokens(reasoner.loop, reasoner.backbone.tokenizer, inputs)
    cosines = [None, *F.cosine_similarity(inputs[1:], inputs[:-1], dim=-1).tolist()]
    norms = inputs.norm(dim=-1).tolist()
    return tuple(
        ThoughtView(
            number=index + 1,
            decoded=decoded[-1][index],
            layers=tuple(layer[index] for layer in decoded),
            norm=norms[index],
            cosine_to_previous=cosines[index],
            nearest=tuple(nearest[index]),
        )
        for index in range(case.num_latents)
    )
