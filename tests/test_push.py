"""``coconut-push`` uploads what others need to load a checkpoint, and nothing else, here to a fake hub on loopback."""

import pytest
from fake_hub import TOKEN, fake_hub
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import constants, utils
from making_feeds import save_with_feed

from coconut_ds import hub as hub_module
from coconut_ds import load_reasoner
from coconut_ds.files import README
from coconut_ds.hf import CoconutForCausalLM
from coconut_ds.push import main

UPLOADED = {
    *("README.md", "config.json", "coconut.json", "generation_config.json", "latent/feed.safetensors", "manifest.json"),
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The fake hub in place of the real one, with the user logged in and an empty cache."""
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        pattern = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
        # Only the real hub has this protocol for uploads.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        utils.close_session()
        yield server
        utils.close_session()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run, with what only a resume of the run reads, and hidden files."""
    folder = tmp_path / "checkpoint_3"
    save_with_feed(folder)
    (folder / "engine").mkdir()
    (folder / "engine" / "state.safetensors").write_bytes(b"state")
    (folder / ".DS_Store").write_bytes(b"hidden")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "file.json").write_text("{}")
    return folder


def test_a_checkpoint_is_uploaded_without_its_engine_and_loads_from_there(hub, checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), "lab/thinker", "--private", "--message", "The best one"]) == 0
    assert f"uploaded {len(UPLOADED)} files: {hub.endpoint}/lab/thinker" in capsys.readouterr().out
    repository = hub.repositories["lab/thinker"]
    assert (set(repository.files), repository.private) == (UPLOADED, True)
    assert repository.messages == ["The best one"]
    assert all(content == (checkpoint / name).read_bytes() for name, content in repository.files.items())
    HubCard(repository.files[README].decode()).validate()
    # A user elsewhere loads it by its name, and edits its model card on the hub.
    repository.files[README] += b"\nEdited on the hub.\n"
    repository.files[".gitattributes"] = b"*.safetensors filter=lfs\n"
    model = CoconutForCausalLM.from_pretrained("lab/thinker")
    answer = load_reasoner(checkpoint).generate("1 + 2 =", max_new_tokens=5)[0]
    prompt = model.prompts("1 + 2 =")
    made = model.generate(**prompt, max_new_tokens=5)
    assert made[0, prompt["input_ids"].shape[1] :].tolist() == answer.completion.tokens
    # A second upload changes the repository, and keeps what was edited here.
    (checkpoint / README).write_text((checkpoint / README).read_text() + "\nA note.\n")
    assert main([str(checkpoint), "lab/thinker"]) == 0
    assert repository.files[README].endswith(b"A note.\n")


def test_a_dry_run_lists_the_files_and_uploads_nothing(hub, checkpoint, capsys):
    (checkpoint / README).unlink()
    assert main([str(checkpoint), "thinker", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert set(shown[:-1]) == UPLOADED
    assert hub.repositories == {}
    assert main([str(checkpoint), "thinker"]) == 0
    assert list(hub.repositories) == ["tester/thinker"]


def test_what_keeps_an_upload_from_happening_is_said(hub, checkpoint, tmp_path, monkeypatch, capsys):
    def error(*arguments: str) -> str:
        assert main([*arguments]) == 2
        return capsys.readouterr().err

    assert "no checkpoint of this project" in error(str(tmp_path), "lab/thinker")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "log in with `hf auth login`" in error(str(checkpoint), "lab/thinker")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "is damaged: model.safetensors" in error(str(checkpoint), "lab/thinker")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    save_with_feed(tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(hub_module, "hub_reachable", lambda: True)
        assert "could not be uploaded" in error(str(tmp_path / "other"), "lab/thinker")
    assert "the hub cannot be reached" in error(str(tmp_path / "other"), "lab/thinker")
    assert hub.repositories == {}
