"""Recognizes checkpoints that think: those with a ``coconut.json``.

vLLM then loads the plugin's class for the architecture.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm.transformers_utils import config as vllm_config_module
from vllm.transformers_utils.config import HFConfigParser, register_config_parser

from coconut_vllm import hooks
from coconut_vllm.card import CARD, Card, read_card
from coconut_vllm.errors import CannotTell, NotSupported
from coconut_vllm.files import located

ARCHITECTURES = {
    "GPT2LMHeadModel": "CoconutGPT2LMHeadModel",
    "LlamaForCausalLM": "CoconutLlamaForCausalLM",
    "MistralForCausalLM": "CoconutMistralForCausalLM",
    "Qwen2ForCausalLM": "CoconutQwen2ForCausalLM",
    "Qwen3ForCausalLM": "CoconutQwen3ForCausalLM",
}
"""For each architecture of vLLM, the plugin's own."""


def located_card(
    model: str, architectures: Iterable[str], revision: str | None, token: str | bool | None
) -> Path | None:
    """The card of a checkpoint; None if it has none.

    Raises:
        CannotTell: whether it has one is not known, and its architecture is one that this project can train and serve.
    """
    try:
        return located(model, CARD, revision, token)
    except CannotTell:
        if set(architectures) & {*ARCHITECTURES, *ARCHITECTURES.values()}:
            raise
        return None


def card_of(model_config: Any) -> Card | None:
    """The card of the model that an engine serves; None if it is not one of ours.

    Raises:
        NotSupported: the checkpoint has a card, but vLLM was told to load it as an ordinary model; or whether it has
            one is not known.
    """
    token = getattr(model_config, "hf_token", None)
    path = located_card(str(model_config.model), model_config.architectures, model_config.revision, token)
    if path is None:
        return None
    if not set(model_config.architectures) <= set(ARCHITECTURES.values()):
        raise NotSupported(
            f"{path.parent}: reasons in continuous thoughts, but vLLM was told to serve it as "
            f"{', '.join(model_config.architectures)}, which would not think; leave out --config-format, "
            "--hf-config-path and the architectures in --hf-overrides"
        )
    return read_card(path)


def recognize(model: str, revision: str | None, token: str | bool | None, values: dict[str, Any], config: Any) -> None:
    """Changes the architecture in both forms of a model's configuration if the checkpoint thinks.

    Raises:
        NotSupported: this vLLM lacks a hook, or the checkpoint cannot be served.
    """
    found = list(config.architectures or [])
    path = located_card(model, found, revision, token)
    if path is None:
        return
    if fault := hooks.fault():
        raise NotSupported(f"{model}: {fault}")
    read_card(path)
    if len(found) != 1 or found[0] not in {*ARCHITECTURES, *ARCHITECTURES.values()}:
        raise NotSupported(
            f"{model}: its architecture is {', '.join(found) or 'not named'}; this plugin serves "
            f"{', '.join(ARCHITECTURES)}; serve this checkpoint with python -m serve api"
        )
    config.architectures = values["architectures"] = [ARCHITECTURES.get(found[0], found[0])]


class RecognizingParser(HFConfigParser):
    """vLLM's own parser of ``config.json``, which also looks for ``coconut.json``."""

    def parse(self, model: str | Path, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """The configuration as a dictionary, and as transformers' object."""
        values, config = super().parse(model, *args, **kwargs)
        revision = kwargs.get("revision", args[1] if len(args) > 1 else None)
        recognize(str(model), revision, kwargs.get("token"), values, config)
        return values, config


def install() -> None:
    """Makes vLLM use the parser; without its warning that one of this name exists."""
    parsers = vllm_config_module._CONFIG_FORMAT_TO_CONFIG_PARSER
    if parsers.get("hf") is not RecognizingParser:
        parsers.pop("hf", None)
        register_config_parser("hf")(RecognizingParser)


def additional(vllm_config: Any) -> dict[str, Any]:
    """The part of ``--additional-config`` that is for this plugin.

    Raises:
        NotSupported: it has another shape than expected.
    """
    whole = vllm_config.additional_config
    own = whole.get("coconut", {}) if isinstance(whole, dict) else {}
    if not isinstance(own, dict) or not set(own) <= {"max_thoughts"}:
        raise NotSupported(f'--additional-config: coconut is {json.dumps(own)}; expected {{"max_thoughts": number}}')
    return own


def most_thoughts(vllm_config: Any, card: Card) -> int:
    """Largest number of thoughts or pause tokens of a request: that of the card, or of ``--additional-config``.

    Raises:
        NotSupported: the setting is not a number, or smaller than the card's.
    """
    most = additional(vllm_config).get("max_thoughts", card.number)
    length = vllm_config.model_config.max_model_len
    if type(most) is not int or not card.number <= most < length:
        raise NotSupported(
            f"--additional-config: coconut.max_thoughts is {most!r}; expected an integer from {card.number}, the "
            f"number in the checkpoint's card, to {length - 1}"
        )
    return most
