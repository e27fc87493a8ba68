"""Small models, backbones and model cards that several test modules share."""

from pathlib import Path

import torch
from tiny_models import SHAPES

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.settings import ModelConfig

TEXTS = ["1 + 2 = 3 << >>"]


def settings_of(family: str = "gpt2") -> ModelConfig:
    return ModelConfig(
        model_id=family, model_init="scratch", tokenizer="dataset", model_config_overrides=dict(SHAPES[family])
    )


def make_backbone(family: str = "gpt2", seed: int = 0):
    torch.manual_seed(seed)
    return build_backbone(settings_of(family), build_word_tokenizer(TEXTS))


def make_card(backbone) -> ModelCard:
    return ModelCard("coconut", 3, 6, 2, 3, marker_table(backbone.markers), provenance={"epoch": 4})


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder and its subfolders, by their paths within it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
