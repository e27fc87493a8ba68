"""Files of checkpoints on the hub: missing is told from unknown, since a model without its card would not think."""

import shutil

import httpx
import pytest
from conftest import options
from huggingface_hub import constants, errors
from vllm.engine.arg_utils import EngineArgs

from coconut_vllm import files, hooks, registration
from coconut_vllm.card import CARD
from coconut_vllm.errors import CannotTell
from coconut_vllm.files import located
from coconut_vllm.recognition import located_card

COMMIT = "a" * 40
ANSWER = httpx.Response(403, request=httpx.Request("GET", "http://hub.test"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the repository me/model in an empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files._on_hub.cache_clear()
    place = tmp_path / "models--me--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    yield place
    files._on_hub.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        errors.RemoteEntryNotFoundError("no such file", response=ANSWER),
        errors.RepositoryNotFoundError("no such repository", response=ANSWER),
        errors.HFValidationError("no name of a repository"),
    ],
)
def test_what_is_certainly_missing_is_no_card(monkeypatch, error):
    monkeypatch.setattr(files, "hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(error))
    assert located_card("me/model", ["LlamaForCausalLM"], None, None) is None


@pytest.mark.parametrize(
    "error",
    [
        errors.GatedRepoError("ask for access", response=ANSWER),
        errors.HfHubHTTPError("bad gateway", response=ANSWER),
        errors.LocalEntryNotFoundError("no connection"),
        httpx.ConnectError("refused"),
    ],
)
def test_what_is_not_known_is_refused_for_the_architectures_that_may_think(monkeypatch, error):
    monkeypatch.setattr(files, "hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(CannotTell, match=r"cannot find out whether it has coconut\.json .*VLLM_PLUGINS="):
        located_card("me/model", ["LlamaForCausalLM"], None, None)
    assert located_card("me/model", ["OPTForCausalLM"], None, None) is None


def test_names_of_other_kinds_have_no_files(tmp_path):
    for name in (str(tmp_path), "s3://bucket/model", "me/model/file.gguf", "me/model:Q4_K_M"):
        assert located(name, CARD, None) is None


def test_an_incomplete_cache_is_refused_offline_and_a_complete_one_is_served(checkpoint, cache):
    """Through vLLM's own configuration."""
    snapshot = cache / "snapshots" / COMMIT
    shutil.copytree(checkpoint("gpt2"), snapshot)
    content = (snapshot / CARD).read_text()
    (snapshot / CARD).unlink()
    with pytest.raises(Exception, match=r"cannot find out whether it has coconut\.json"):
        EngineArgs("me/model", **options()).create_engine_config()
    (snapshot / CARD).write_text(content)
    made = EngineArgs("me/model", **options()).create_engine_config()
    assert made.model_config.architectures == ["CoconutGPT2LMHeadModel"]
    (snapshot / CARD).unlink()
    (cache / ".no_exist" / COMMIT).mkdir(parents=True)
    (cache / ".no_exist" / COMMIT / CARD).touch()
    files._on_hub.cache_clear()
    made = EngineArgs("me/model", **options(additional_config={})).create_engine_config()
    assert made.model_config.architectures == ["GPT2LMHeadModel"]


def test_a_vllm_that_cannot_be_extended_at_all_is_left_alone(monkeypatch):
    """Ordinary models are served; the log says that others would not think."""
    monkeypatch.setitem(hooks.RECOGNITION, "vllm.transformers_utils.config:gone", "self")
    said = []
    monkeypatch.setattr(registration.log, "warning", lambda *parts: said.append(parts))
    monkeypatch.setattr("vllm.ModelRegistry.register_model", lambda *_: said.append("registered"))
    hooks.fault.cache_clear()
    try:
        registration.register_all()
        assert len(said) == 1
        assert "would not think" in said[0][0]
        assert "vllm.transformers_utils.config:gone" in said[0][1]
    finally:
        monkeypatch.undo()
        hooks.fault.cache_clear()
    assert hooks.fault(recognition_only=True) is None
