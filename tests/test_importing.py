"""``coconut-import``: published checkpoints become folders that think as the published models do, token for token."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import (
    Coconut,
    Codi,
    Twin,
    coconut_twin,
    codi_twin,
    make_projection,
    recorded_base,
    save_base,
    tiny_model,
    tokenizer,
    with_adapters,
)
from recorded_objectives import Recording
from safetensors.torch import save_file
from slow_loop import slow_logits

from coconut_ds.data.tokens import add_markers
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Thoughts, Writing
from coconut_ds.importing.cli import main
from coconut_ds.importing.codi import feed_of
from coconut_ds.importing.convert import ImportOptions, import_checkpoint
from coconut_ds.importing.published import recognised
from coconut_ds.importing.tensors import Tensors, weight_files_of
from coconut_ds.reasoner import Reasoner, load_reasoner

QUESTIONS = ["1 + 2 =", "4 - 1  + 5"]
ROOT = Path(__file__).parent.parent
PARITY = ROOT / "tests" / "parity_data" / "objectives"


def check(twin: Twin, folder: Path, thoughts: int) -> Reasoner:
    """The folder gives the twin's logits and greedy tokens."""
    reasoner = load_reasoner(folder)
    assert reasoner.card.num_thoughts == thoughts
    backbone, eos = reasoner.backbone, reasoner.backbone.tokenizer.eos_token_id
    words = tokenizer()
    for question in QUESTIONS:
        text = question if twin.end else question.strip().replace("  ", " ")
        ids = words(text + twin.end).input_ids
        wanted = twin.tokens(ids, thoughts, 4, eos)
        answer = reasoner.generate(question, max_new_tokens=4)[0]
        assert answer.completion.tokens == wanted
        prompt = reasoner.prompter.prompt(reasoner.prompter.encode([question])[0], Thoughts(thoughts))
        made = slow_logits(backbone.model, prompt, feed=backbone.feed or torch.nn.Identity())
        expected = twin.logits(ids, thoughts, ())
        torch.testing.assert_close(made[:, : len(words)], expected[:, : len(words)], rtol=1e-4, atol=1e-5)
    return reasoner


@pytest.mark.parametrize(("family", "decoder"), [("gpt2", False), ("llama", True)], ids=["reference", "sim_cot"])
def test_state_dicts_of_coconut_and_of_sim_cot_on_it(tmp_path, family, decoder):
    """The file of an epoch, alone or in a folder beside an empty config.json, as SIM-CoT publishes it."""
    save_base(tmp_path / "base", family)
    twin = coconut_twin(family)
    wrapped = Coconut(twin.model, tiny_model(family, 40, seed=9) if decoder else None)
    (tmp_path / "source").mkdir()
    torch.save(wrapped.state_dict(), tmp_path / "source" / "checkpoint_28")
    (tmp_path / "source" / "config.json").touch()
    options = ImportOptions(base=str(tmp_path / "base"), n_thoughts=None if decoder else 4)
    found, _ = import_checkpoint(str(tmp_path / "source"), tmp_path / "out", options)
    assert found.format == ("sim_cot" if decoder else "reference")
    card = check(twin, tmp_path / "out", 10 if decoder else 4).card
    assert (card.method, card.c_thought, card.format) == ("coconut", 2, "text")
    assert list(card.provenance["imported_files"]) == ["checkpoint_28"]


def test_a_state_dict_without_thoughts_needs_its_method(tmp_path):
    rows = save_base(tmp_path / "base", "gpt2")
    torch.save(tiny_model("gpt2", rows).state_dict(), tmp_path / "checkpoint_3")
    arguments = [str(tmp_path / "checkpoint_3"), str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    assert main(arguments) == 2
    assert main([*arguments, "--method", "cot"]) == 0
    assert load_reasoner(tmp_path / "out").card.method == "cot"


@pytest.mark.parametrize("marked", [False, True], ids=["svp", "latent_tts"])
def test_coconut_folders_of_latent_tts_and_svp(tmp_path, marked):
    """The tokenizer's ids of the markers count, in whatever order."""
    words = tokenizer()
    words.add_tokens(["<|latent|>", "<|end-latent|>", "<|start-latent|>"], special_tokens=True)
    first = len(tokenizer())
    model = tiny_model("gpt2", first + 3)
    twin = Twin(model, first + 2, first + 1, range(first, first + 3), end="\n")
    source = tmp_path / "source"
    model.save_pretrained(source)
    words.save_pretrained(source)
    if marked:
        config = json.loads((source / "config.json").read_text())
        config |= {"architectures": ["COCONUTGPT2"], "latent_id": first, "latent_start_id": -100, "target_id": -100}
        (source / "config.json").write_text(json.dumps(config))
    found, _ = import_checkpoint(str(source), tmp_path / "out", ImportOptions())
    assert found.format == ("latent_tts" if marked else "svp")
    for name in ("latent_tts", "svp"):
        assert recognised(source, [], name).format == name
    if marked:
        check(twin, tmp_path / "out", 6)


@pytest.mark.parametrize(
    ("family", "file", "padded", "decoder"),
    [
        ("gpt2", "pytorch_model.bin", 0, False),
        ("llama", "model-00001-of-00001.safetensors", 0, True),
        ("llama", "shards", 3, False),
    ],
)
def test_state_dicts_of_codi_and_of_sim_cot_on_it(tmp_path, family, file, padded, decoder):
    """LoRA is merged, also where GPT-2 stores matrices transposed; the decoder is left out."""
    rows = save_base(tmp_path / "base", family, padded)
    projection = make_projection()
    twin = codi_twin(family, rows, projection)
    wrapped = Codi(with_adapters(twin, family), projection, tiny_model(family, 11, seed=3) if decoder else None)
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").touch()
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    if file == "shards":
        names = list(state)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for part, own in parts.items():
            save_file({name: state[name] for name in own}, source / part)
        index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif file.endswith(".bin"):
        torch.save(state, source / file)
    else:
        save_file(state, source / file)
    options = ImportOptions(base=str(tmp_path / "base"), lora_alpha=8.0, n_thoughts=3)
    found, _ = import_checkpoint(str(source), tmp_path / "out", options)
    assert found.format == ("sim_cot" if decoder else "codi")
    card = check(twin, tmp_path / "out", 3).card
    assert (card.method, card.format, str(card.feed)) == ("coconut_no_curriculum", "codi", "projection of width 24")


@pytest.mark.parametrize("place", ["prj.pt", "projector.pt", "weights"])
def test_codi_folders_of_latent_tts_and_svp(tmp_path, place):
    """LatentTTS has the markers in the tokenizer; SVP's conversion has three rows and no markers."""
    rows = len(tokenizer())
    projection = make_projection(norm_name="4" if place == "weights" else "ln")
    twin = codi_twin("gpt2", rows, projection)
    source = tmp_path / "source"
    words = tokenizer()
    if place != "projector.pt":
        add_markers(words)
        twin = replace(twin, before=rows, after=rows + 1)
    if place == "weights":
        twin.model.projector = projection
    else:
        source.mkdir()
        torch.save(projection.state_dict(), source / place)
    twin.model.save_pretrained(source)
    words.save_pretrained(source)
    found, _ = import_checkpoint(str(source), tmp_path / "out", ImportOptions())
    assert (found.format, load_reasoner(tmp_path / "out").card.num_thoughts) == (
        "latent_tts" if place == "prj.pt" else "svp",
        6,
    )
    check(twin, tmp_path / "out", 6)


@pytest.mark.parametrize("name", ["codi/gpt2", "simcot_codi/gpt2"])
def test_the_recorded_answers_of_the_authors_code(tmp_path, name):
    """Their model's weights, imported, give the greedy tokens that their code gave."""
    recording = Recording(PARITY / name)
    recorded_base(tmp_path / "base", recording, recording.ids["pad"])
    state = {f"codi.{key}": value for key, value in recording.tensors("model").items()}
    state["codi.lm_head.weight"] = state["codi.transformer.wte.weight"].clone()
    state |= recording.tensors("projection")
    if "simcot" in name:
        state |= {f"decoder.{key}": value for key, value in recording.tensors("decoder").items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    options = ImportOptions(base=str(tmp_path / "base"), n_thoughts=3)
    import_checkpoint(str(tmp_path / "pytorch_model.bin"), tmp_path / "out", options)
    reasoner = load_reasoner(tmp_path / "out")
    markers = reasoner.backbone.markers
    assert (markers.start, markers.end) == (recording.ids["bot"], recording.ids["eot"])
    prompter = reasoner.prompter
    for entry in recording.expected["generation"]["each_prompt_alone"]:
        # The recorded answers hold neither of the two markers that theirs may generate and ours never does.
        request = prompter.request(entry["prompt"], reasoner.thoughts(), Writing(len(entry["new_tokens"])))
        assert generate(reasoner.loop, [request], prompter.eos_ids)[0].tokens == entry["new_tokens"]


def test_the_recorded_adapters_merge_to_the_recorded_function(tmp_path):
    """Adapters under the names of ``peft``, of the authors' own model: the logits of the wrapped model come out."""
    recording = Recording(PARITY / "codi/gpt2")
    recorded_base(tmp_path / "base", recording, recording.ids["pad"])
    adapters = recording.tensors("lora")
    layers = {name.split(".lora_")[0] for name in adapters}
    state = {}
    for key, value in recording.tensors("model").items():
        layer, _, part = f"codi.base_model.model.{key}".rpartition(".")
        state[f"{layer}.base_layer.{part}" if layer in layers else f"{layer}.{part}"] = value
    torch.save({**state, **adapters, **recording.tensors("projection")}, tmp_path / "pytorch_model.bin")
    options = ImportOptions(base=str(tmp_path / "base"), n_thoughts=3, lora_alpha=recording.expected["lora"]["alpha"])
    import_checkpoint(str(tmp_path / "pytorch_model.bin"), tmp_path / "out", options)
    ids = recording.ids
    projection = recording.projection()
    twin = Twin(recording.model(with_lora=True), ids["bot"], ids["eot"], (ids["eot"],), projection)
    reasoner = load_reasoner(tmp_path / "out")
    question = recording.expected["generation"]["each_prompt_alone"][0]["prompt"]
    prompt = reasoner.prompter.prompt(question, reasoner.thoughts())
    made = slow_logits(reasoner.backbone.model, prompt, feed=reasoner.backbone.feed)
    torch.testing.assert_close(made, twin.logits(question, 3, ()), rtol=1e-4, atol=1e-4)


def test_the_recorded_answers_of_sim_cot_on_coconut(tmp_path):
    recording = Recording(PARITY / "simcot_coconut/llama")
    recorded_base(tmp_path / "base", recording, recording.ids["start_latent"])
    state = {f"base_causallm.{key}": value for key, value in recording.tensors("model").items()}
    state["embedding.weight"] = state["base_causallm.model.embed_tokens.weight"].clone()
    state |= {f"expainable_llm.{key}": value for key, value in recording.tensors("decoder").items()}
    torch.save(state, tmp_path / "checkpoint_28")
    options = ImportOptions(base=str(tmp_path / "base"), n_thoughts=6)
    import_checkpoint(str(tmp_path / "checkpoint_28"), tmp_path / "out", options)
    reasoner = load_reasoner(tmp_path / "out")
    prompter, compared = reasoner.prompter, 0
    for entry in recording.expected["generation"]:
        wanted = entry["new_tokens"]
        # Theirs may generate markers, and ours never does; the tokens after one are those of another text.
        wanted = wanted[: next((i for i, token in enumerate(wanted) if token in recording.ids.values()), len(wanted))]
        question = entry["prompt"][: entry["prompt"].index(recording.ids["start_latent"])]
        assert entry["prompt"].count(recording.ids["latent"]) == 6
        request = prompter.request(question, reasoner.thoughts(), Writing(len(entry["new_tokens"])))
        made = generate(reasoner.loop, [request], prompter.eos_ids)[0].tokens
        assert made[: len(wanted)] == wanted
        compared += len(wanted)
    assert compared >= 20


def test_a_projection_of_a_recording_is_the_feed():
    recording = Recording(PARITY / "codi/gpt2")
    tensors = {name.removeprefix("prj."): value for name, value in recording.tensors("projection").items()}
    states = torch.randn(5, 32)
    feed = feed_of(Path("prj.pt"), tensors, 32)
    torch.testing.assert_close(feed(states), recording.projection()(states))
    assert feed_of(Path("prj.pt"), {}, 32) is None


def test_tensors_of_safetensors_are_those_of_the_file(tmp_path):
    given = {"a": torch.randn(3, 2), "b": torch.arange(4), "none": torch.empty(0, 2), "half": torch.ones(2).bfloat16()}
    save_file(given, tmp_path / "model.safetensors")
    found = Tensors(weight_files_of(tmp_path))
    assert set(found) == set(given)
    assert all(torch.equal(found[name], value) for name, value in given.items())
