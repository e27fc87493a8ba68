"""Reads folders of numbers that public implementations of CODI, SIM-CoT and LOTUS gave on tiny random models.

A folder holds a Hugging Face model, the weights of other modules, ``expected.json`` (settings, losses, gradient norms,
greedy answers) and ``case_*.safetensors`` (the padded batch of each case). This module gives the modules and the
prompts; ``recorded_cases.py`` gives the cases, without padding. ``comparing_objectives.py`` compares.

The folders in ``parity_data/objectives`` are parts of larger ones: a few cases of each, without activations, token ids
as int16, and 96 of GPT-2's 192 positions.
"""

import json
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from slow_thoughts import IGNORE, Row
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SOURCES = {
    "zhenyi4/codi": "codi",
    "InternLM/SIM-CoT CODI/": "sim_cot_on_codi",
    "InternLM/SIM-CoT Coconut/": "sim_cot_on_coconut",
    "yingfan-bot/lotus": "lotus",
}
"""Which objective each source, without its commit, has recorded."""
ADAPTER = "default"
"""The name of peft's adapter in ``lora.safetensors``."""
WRAPPED = "codi.base_model.model."
"""What precedes the names of a model with LoRA in the recordings."""


class Prompt(NamedTuple):
    """A prompt, and the greedy answer to it."""

    row: Row
    """The prompt with its thoughts; it has no labels."""
    wanted: list[int]
    """The recorded answer."""
    max_new_tokens: int
    readout: list[int]
    """LOTUS: the most likely token of the state before each slot and of the last slot's state, in the last pass; empty
    for the other objectives."""


@dataclass
class Modules:
    """Fresh copies of the modules of a case, in fp32. Only what is trained requires gradients."""

    model: PreTrainedModel
    projection: nn.Module = field(default_factory=nn.Identity)
    """What a state goes through before it is fed back."""
    decoder: PreTrainedModel | None = None
    """SIM-CoT's auxiliary decoder, or the copy of the model that reads the blocks of LOTUS."""
    into_decoder: nn.Module = field(default_factory=nn.Identity)
    """What all input vectors of the decoder go through first."""
    teacher: PreTrainedModel | None = None
    """LOTUS's frozen teacher."""

    def trained(self, model_prefix: str, decoder_prefix: str) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by the names that the recording gives them."""
        parts = {model_prefix: self.model, "prj.": self.projection, "pj_in.": self.into_decoder}
        if self.decoder is not None:
            parts[decoder_prefix] = self.decoder
        return {
            prefix + name: parameter
            for prefix, module in parts.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }


@dataclass(frozen=True)
class Recording:
    """One folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The objective's folder and the model's."""
        return "/".join(self.folder.parts[-2:])

    @cached_property
    def expected(self) -> dict[str, Any]:
        """The content of ``expected.json``."""
        return json.loads((self.folder / "expected.json").read_text())

    @property
    def is_one(self) -> bool:
        """Whether the folder holds a recording of an objective, and not one of Coconut (``parity.py``)."""
        return "source" in self.expected

    @cached_property
    def objective(self) -> str:
        """One of the values of ``SOURCES``."""
        repository, _commit, *variant = self.expected["source"].split()
        return SOURCES[" ".join([repository, *variant])]

    @property
    def ids(self) -> dict[str, Any]:
        """Ids of special tokens, by name."""
        return self.expected["token_ids"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The content of a file of tensors. Files that the folder lacks are those of CODI for the same model."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path if path.exists() else self.folder.parents[1] / "codi" / self.folder.name / path.name)

    @cached_property
    def _loaded(self) -> dict[str, PreTrainedModel]:
        return {}

    def language_model(self, name: str, config: str) -> PreTrainedModel:
        """A fresh copy of the language model in a file; tensors that do not belong to it (``pj_in``) are ignored."""
        if name not in self._loaded:
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(self.folder / f"{config}.json"), dtype=torch.float32
            )
            missing = model.load_state_dict(self.tensors(name), strict=False).missing_keys
            assert set(missing) <= set(model.all_tied_weights_keys), missing
            self._loaded[name] = model.eval()
        return deepcopy(self._loaded[name])

    def model(self, with_lora: bool = False) -> PreTrainedModel:
        """The main model; with LoRA only the adapters are trained."""
        model = self.language_model("model", "config")
        if with_lora:
            self._add_lora(model)
        return model

    def _add_lora(self, model: PreTrainedModel) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        weights = {name.removeprefix(WRAPPED): values for name, values in self.tensors("lora").items()}
        config = LoraConfig(
            r=self.expected["lora"]["r"],
            lora_alpha=self.expected["lora"]["alpha"],
            target_modules=sorted({name.split(".lora_")[0] for name in weights}),
            # GPT-2's ``Conv1D`` layers store their matrices transposed.
            fan_in_fan_out=model.config.model_type == "gpt2",
        )
        inject_adapter_in_model(config, model, ADAPTER)
        assert not model.load_state_dict(weights, strict=False).unexpected_keys

    def projection(self) -> nn.Module:
        """CODI's projection: two linear maps with an exact GELU between them, and a layer norm."""
        weights = {name.removeprefix("prj."): values for name, values in self.tensors("projection").items()}
        inner, width = weights["1.weight"].shape
        layers = {"1": nn.Linear(width, inner), "2": nn.GELU(), "3": nn.Linear(inner, width), "ln": nn.LayerNorm(width)}
        projection = nn.Sequential(OrderedDict(layers))
        projection.load_state_dict(weights)
        return projection

    def into_decoder(self, name: str) -> nn.Module:
        """The linear map ``pj_in`` of a narrow decoder."""
        weights = {key.removeprefix("pj_in."): values for key, values in self.tensors(name).items() if "pj_in" in key}
        linear = nn.Linear(*reversed(weights["weight"].shape))
        linear.load_state_dict(weights)
        return linear

    def prompts(self) -> list[Prompt]:
        """The prompts of the recorded answers, each answered alone."""
        generation = self.expected["generation"]
        entries = generation["each_prompt_alone"] if isinstance(generation, dict) else generation
        longest = max(len(entry["new_tokens"]) for entry in entries)
        return [
            Prompt(
                self._prompt(entry["prompt"]),
                entry["new_tokens"],
                longest,
                entry.get("argmax_at_each_slot_last_loop", []),
            )
            for entry in entries
        ]

    def _prompt(self, ids: list[int]) -> Row:
        """A prompt as a row; CODI's hold the question alone, the others have their thoughts."""
        if "bot" in self.ids:
            bot, eot, count = self.ids["bot"], self.ids["eot"], 3
            first, ids = len(ids) + 1, [*ids, *[bot] * (1 + count), eot]
        else:
            first, count = ids.index(self.ids["latent"]), ids.count(self.ids["latent"])
        return Row(ids, [IGNORE] * len(ids), first, count)
