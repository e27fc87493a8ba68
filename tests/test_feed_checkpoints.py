"""Checkpoints with a feed: read back and used everywhere with no option given, or refused with the reason."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making import contents, make_backbone, make_card, settings_of
from making_feeds import SPEC, make_feed, save_with_feed
from making_saver import StillEngine, make_saver
from safetensors.torch import load_file, save_file
from torch_engine import run_folder, tiny_experiment
from transformers import AutoModelForCausalLM

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.distributed.ranks import ALONE
from coconut_ds.errors import CheckpointError, ConfigError, ModelError
from coconut_ds.evaluation.identity import reasoner_identity
from coconut_ds.files import seal_of
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.card import ModelCard
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.model.digest import digest_parameters
from coconut_ds.model.feed import FeedSpec
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.model.starting import starting_feed
from coconut_ds.reasoner import Reasoner, load_reasoner
from coconut_ds.runs.resume_state import Position
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings
from serve.models.memory import needed_bytes
from serve.models.pool import Models

QUESTIONS = ["1 + 2", "3", "2 + 2 ="]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a feed; tests that change it use ``copied``."""
    folder = tmp_path_factory.mktemp("feeds") / "checkpoint"
    save_with_feed(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy without the manifest, as another program would leave it."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "manifest.json").unlink()
    return folder


def answers(reasoner: Reasoner) -> list[tuple[list[int], list[list[float]]]]:
    made = reasoner.generate(QUESTIONS, n_thoughts=3, max_new_tokens=5, keep_thoughts=True)
    return [(one.completion.tokens, one.completion.fed.tolist()) for one in made]


def test_a_checkpoint_with_a_feed_is_read_back_identically_by_everything_that_loads_models(saved, tmp_path):
    """Python, another save, the server, and transformers, for which the top of the folder is a plain model."""
    backbone = make_backbone()
    expected = answers(Reasoner(replace(backbone, feed=make_feed()), make_card(backbone)))
    assert expected != answers(Reasoner(backbone, make_card(backbone))), "the feed makes a difference"
    reasoner = load_reasoner(saved)
    assert (reasoner.card.feed, answers(reasoner)) == (SPEC, expected)
    assert reasoner.loop.feed is reasoner.backbone.feed is not None
    for name, value in make_feed().state_dict().items():
        assert torch.equal(reasoner.backbone.feed.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in reasoner.backbone.feed.parameters())
    reasoner.save(tmp_path / "again")
    before, after = (
        {name: value for name, value in contents(folder).items() if not name.startswith(("tokenizer", "manifest"))}
        for folder in (saved, tmp_path / "again")
    )
    assert before == after
    plain = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in backbone.model.state_dict().items())
    models = Models(find_checkpoints([str(saved)]), EngineSettings(slots=2), 8, 10**9)
    with models.holding("checkpoint") as thread:
        assert thread.run(answers).result() == expected
    models.close()
    rounded = load_reasoner(saved, dtype=torch.bfloat16).backbone
    assert {one.dtype for one in rounded.feed.parameters()} == {one.dtype for one in rounded.model.parameters()}


def test_a_card_without_a_feed_is_written_as_before(tmp_path):
    backbone = make_backbone()
    card = make_card(backbone)
    save_model(tmp_path / "one", backbone.model, backbone.model.state_dict(), backbone.tokenizer, card)
    assert "feed" not in json.loads((tmp_path / "one" / "coconut.json").read_text())
    assert not (tmp_path / "one" / "latent").exists()
    assert ModelCard.read(tmp_path / "one") == card
    assert load_folder(tmp_path / "one").feed is None


def test_the_manifest_covers_the_feed(saved, tmp_path):
    assert str(FEED_FILE) in seal_of(saved)["files"]
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    content = bytearray((folder / FEED_FILE).read_bytes())
    content[-1] ^= 1
    (folder / FEED_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: latent/feed\.safetensors has other content"):
        load_folder(folder)
    (folder / FEED_FILE).unlink()
    for load in (load_folder, lambda folder: find_checkpoints([str(folder)])):
        with pytest.raises(CheckpointError, match=r"is damaged: latent/feed\.safetensors is missing"):
            load(folder)


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Changes the tensors of a folder's feed."""

    def apply(folder: Path) -> None:
        state = load_file(folder / FEED_FILE)
        change(state)
        save_file(state, folder / FEED_FILE)

    return apply


def with_card(**values: object) -> Callable[[Path], None]:
    """Changes keys of a folder's card."""

    def apply(folder: Path) -> None:
        card = json.loads((folder / "coconut.json").read_text())
        (folder / "coconut.json").write_text(json.dumps({**card, **values}))

    return apply


AT_THE_START = {
    "no file": (lambda folder: (folder / FEED_FILE).unlink(), r"feed\.safetensors: is missing; coconut\.json names a"),
    "half a file": (
        lambda folder: (folder / FEED_FILE).write_bytes((folder / FEED_FILE).read_bytes()[:999]),
        "is not a complete safetensors file",
    ),
    "a pointer": (
        lambda folder: (folder / FEED_FILE).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer",
    ),
    "an unknown feed": (with_card(feed={"kind": "mirror", "width": 24}), "unknown feed 'mirror'; expected one of proj"),
    "no width": (with_card(feed={"kind": "projection", "width": 0}), "feed width 0; expected 1 or more"),
    "a card without a feed": (with_card(feed=None), r"no coconut\.json of this folder names a feed"),
}
"""Faults that the server finds when it starts."""
LATER = {
    "another width": (with_card(feed={"kind": "projection", "width": 23}), "of another shape inner.bias"),
    "a tensor is missing": (changed(lambda state: state.pop("norm.bias")), r"missing norm\.bias"),
    "a tensor too many": (changed(lambda state: state.update(more=torch.ones(1))), "unexpected more"),
    "another shape": (changed(lambda state: state.update({"norm.bias": torch.ones(31)})), r"shape norm\.bias"),
    "not finite": (changed(lambda state: state["outer.weight"].fill_(float("nan"))), r"outer\.weight has values"),
    "whole numbers": (changed(lambda state: state.update({"norm.bias": torch.ones(32).int()})), r"norm\.bias has val"),
    "no card": (lambda folder: (folder / "coconut.json").unlink(), r"no coconut\.json of this folder names a feed"),
}


@pytest.mark.parametrize("fault", [*AT_THE_START, *LATER])
def test_a_feed_that_does_not_fit_is_refused(copied, fault):
    spoil, words = {**AT_THE_START, **LATER}[fault]
    spoil(copied)
    with pytest.raises(CheckpointError, match=words):
        load_reasoner(copied, method="coconut" if fault == "no card" else None, n_thoughts=2)
    if fault in AT_THE_START:
        with pytest.raises(CheckpointError, match=words):
            find_checkpoints([str(copied)])


def test_the_server_counts_the_memory_of_the_feed(saved, copied):
    settings = EngineSettings(slots=2)
    (copied / FEED_FILE).unlink()
    numbers = sum(one.numel() for one in make_feed().parameters())
    assert needed_bytes(saved, settings) - needed_bytes(copied, settings) == 4 * numbers


def test_results_depend_on_the_weights_of_the_feed(saved):
    """And those of checkpoints without a feed have the identity that they had before there were feeds."""
    backbone = make_backbone()
    plain = reasoner_identity(Reasoner(backbone, make_card(backbone)))
    assert not [key for key in plain if "feed" in key]
    one, other = load_reasoner(saved), load_reasoner(saved)
    with torch.no_grad():
        other.backbone.feed.norm.bias[3] += 1e-3
    first, second = reasoner_identity(one), reasoner_identity(other)
    assert {key for key in first if first[key] != second[key]} == {"checkpoint.weights"}
    assert {key for key in first if first[key] != plain.get(key)} >= {"checkpoint.feed.kind", "checkpoint.feed.width"}
    assert plain["checkpoint.weights"] != first["checkpoint.weights"]


def test_a_run_starts_from_a_checkpoint_with_its_feed(saved):
    """The objective may ask for the same feed or for none; a new one is drawn from the seed alone."""
    loaded = tiny_experiment(f"load_model_path={saved}").backbone
    coconut, fresh = METHODS["coconut"], make_backbone()
    assert answers(Reasoner(loaded, make_card(loaded))) == answers(load_reasoner(saved))
    for wanted in (None, SPEC):
        assert starting_feed(loaded, wanted, coconut, 0) is loaded.feed
    with pytest.raises(ConfigError, match=r"checkpoint is projection of width 24, the objective needs .* width 32"):
        starting_feed(loaded, FeedSpec("projection", 32), coconut, 0)
    for method in ("cot", "pause"):
        with pytest.raises(ConfigError, match=f"method={method}: has no thoughts, but the checkpoint in run.load"):
            starting_feed(loaded, None, METHODS[method], 0)
        with pytest.raises(ConfigError, match="but the objective has a feed"):
            starting_feed(fresh, SPEC, METHODS[method], 0)
    assert starting_feed(fresh, None, METHODS["cot"], 0) is None
    one, again = (starting_feed(fresh, SPEC, coconut, 7) for _ in range(2))
    assert one.spec == SPEC
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    hashes = [digest_parameters(loaded.model, ALONE, feed) for feed in (None, loaded.feed, one)]
    assert len(set(hashes)) == 3
    assert hashes[0] == digest_parameters(loaded.model, ALONE)


def test_model_id_does_not_drop_a_feed(saved):
    settings = settings_of().model_copy(update={"model_id": str(saved), "model_init": "pretrained"})
    with pytest.raises(ModelError, match=r"does not load; set run\.load_model_path="):
        build_backbone(settings, build_word_tokenizer(QUESTIONS))


def test_a_run_writes_its_feed_into_its_checkpoints(tmp_path):
    experiment = tiny_experiment()
    feed = make_feed(size=16)
    experiment = replace(experiment, backbone=replace(experiment.backbone, feed=feed))
    folder = run_folder(tmp_path)
    make_saver(experiment, folder).save(StillEngine(experiment), Position(epoch=1, global_step=3), 1)
    checkpoint = folder.checkpoint(1)
    again = load_folder(checkpoint)
    assert ModelCard.read(checkpoint).feed == SPEC
    assert all(torch.equal(a, b) for a, b in zip(again.feed.parameters(), feed.parameters(), strict=True))
