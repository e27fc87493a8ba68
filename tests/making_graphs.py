"""Small graph problems, a random model that reads them, and paths and probabilities computed by brute force."""

import random

import torch
from tiny_models import SHAPES

from coconut_ds.data.graphs import Graph
from coconut_ds.data.layered import LayeredGraphs
from coconut_ds.data.problem import Problem
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.data.symbolic import SymbolicProsqa
from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.formats import SYMBOLIC, TEXT
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings import ModelConfig, SplitSizes

FORMATS = {"text": TEXT, "symbolic": SYMBOLIC, "arrows": TEXT}
ALL_FORMATS = {**FORMATS, "symbolic arrows": SYMBOLIC}


def problems_of(form: str, count: int = 6) -> list[Problem]:
    if ALL_FORMATS[form].one_token:
        size, wording = SplitSizes(train=1, valid=1, test=count), "arrows" if "arrows" in form else "triples"
        return SymbolicProsqa(0, size, (3, 4), False, wording=wording).test()
    if form == "arrows":
        size = {"train": 1, "valid": 1, "test": count}
        return LayeredGraphs(0, size, (8, 9), (3, 4), (8, 9), False, "arrows").test()
    return [generate_problem(random.Random(f"graphs/{index}")) for index in range(count)]


def make_graph_reasoner(form: str, problems: list[Problem], **card) -> Reasoner:
    torch.manual_seed(3)
    shape = {**SHAPES["gpt2"], "n_positions": 512, "initializer_range": 0.3}
    settings = ModelConfig(model_id="gpt2", model_init="scratch", tokenizer="dataset", model_config_overrides=shape)
    texts = [text for p in problems for text in (p.question, *p.steps, p.answer, *p.extra["idx_to_symbol"])]
    backbone = build_backbone(settings, build_word_tokenizer([*texts, "[A] Every"]))
    values = {"stage": 2, "num_thoughts": 2, "c_thought": 1, "max_latent_stage": 4, "format": FORMATS[form].name}
    values |= card
    return Reasoner(backbone, ModelCard("coconut", marker_ids=marker_table(backbone.markers), **values))


def walks(graph: Graph, start: int) -> list[list[int]]:
    """All paths that begin at a node, by trying every one."""
    return [[start], *([start, *rest] for child in graph.children[start] for rest in walks(graph, child))]


def slow_probabilities(reasoner: Reasoner, question: str, number: int, before: str) -> dict[str, float]:
    """The probability of each word after ``number`` thoughts, from passes over the whole sequence without a cache."""
    tokenizer, markers, form = reasoner.backbone.tokenizer, reasoner.backbone.markers, reasoner.card.text_format
    model = reasoner.backbone.model
    ids = tokenizer.encode(f"{question}{form.question_end}", add_special_tokens=False)
    ids = [*([tokenizer.eos_token_id] if form.starts_with_eos else []), *ids]
    ids += [] if form.one_token else [markers.start]
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    for _ in range(number):
        states = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        embeds = torch.cat([embeds, states[:, -1:]], dim=1)
    after = [] if form.one_token else [markers.end]
    after += tokenizer.encode(before, add_special_tokens=False) if before else []
    if after:
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([after]))], dim=1)
    logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].detach().clone()
    logits[list(markers.all())] = float("-inf")
    return dict(zip(tokenizer.convert_ids_to_tokens(range(len(logits))), logits.softmax(-1).tolist(), strict=True))
