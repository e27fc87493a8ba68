"""Small reasoners for the probing tests, and log probabilities computed by whole passes."""

from dataclasses import replace

import torch
from making import TEXTS, make_card, settings_of

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import build_backbone
from coconut_ds.probing.cases import Case
from coconut_ds.reasoner import Reasoner

QUESTION = "1 + 2"

REFERENCES = ["3", "2 + 2 =", "1 + 3 =", "2 + 1 + 1"]

QUESTIONS = [QUESTION, *REFERENCES]


def make_reasoner(family: str = "gpt2", method: str = "coconut", seed: int = 0) -> Reasoner:
    torch.manual_seed(seed)
    pauses = METHODS[method].pauses
    backbone = build_backbone(settings_of(family), build_word_tokenizer(TEXTS), pauses)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.dim() > 1:
                # Large enough that every path matters, and that answers differ.
                parameter.normal_(0.0, 0.7, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    latents = {"num_thoughts": 0 if pauses else 3, "num_pauses": 3 if pauses else 0}
    return Reasoner(backbone, replace(make_card(backbone), method=method, c_thought=1, **latents))


def sequence(reasoner: Reasoner, case: Case, vectors: torch.Tensor) -> torch.Tensor:
    """Input embeddings [1, T, D] of a prompt with these vectors as its thoughts."""
    embeds = reasoner.loop.embed(torch.tensor([list(case.prompt.input_ids)])).detach().clone()
    first = case.prompt.first_thought
    embeds[0, first : first + len(vectors)] = vectors
    return embeds


def slow_score(reasoner: Reasoner, embeds: torch.Tensor, tokens: list[int]) -> float:
    """Log probability of tokens after a sequence; each distribution excludes the markers."""
    model, total = reasoner.backbone.model, 0.0
    for token in tokens:
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].detach().clone()
        logits[list(reasoner.backbone.markers.all())] = float("-inf")
        total += float(logits.log_softmax(-1)[token])
        embeds = torch.cat([embeds, reasoner.loop.embed(torch.tensor([[token]]))], dim=1)
    return total
