"""``coconut-import`` runs no code of a file, refuses what it cannot express, and says what to type instead."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from published import (
    Coconut,
    Codi,
    Evil,
    coconut_twin,
    codi_twin,
    make_projection,
    save_base,
    tokenizer,
    with_adapters,
)

from coconut_ds import push
from coconut_ds.data.tokens import add_markers
from coconut_ds.errors import CheckpointError
from coconut_ds.importing import cli
from coconut_ds.importing.cli import FORMATS, main
from coconut_ds.importing.convert import ImportOptions, import_checkpoint
from coconut_ds.importing.published import FormatName

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["checkpoint_3", "pytorch_model.bin", "prj.pt", "projector.pt"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path, name, capsys):
    source, ran = tmp_path / "source", tmp_path / "ran"
    twin = coconut_twin()
    words = tokenizer()
    add_markers(words)
    source.mkdir()
    if name.endswith(".pt"):
        twin.model.save_pretrained(source)
        words.save_pretrained(source)
    state = {**twin.model.state_dict(), "code": Evil(ran)}
    torch.save(state, source / name)
    assert main([str(source), str(tmp_path / "out"), "--base", str(source), "--n-thoughts", "2"]) == 2
    assert f"{name}: cannot be read as a state dict" in capsys.readouterr().err
    assert not ran.exists()
    assert not (tmp_path / "out").exists()
    # The same file does run its code where code is allowed.
    torch.load(source / name, weights_only=False)
    assert ran.exists()


def codi_state(family: str = "gpt2") -> dict:
    rows = len(tokenizer())
    twin = codi_twin(family, rows, None)
    return Codi(with_adapters(twin, family), make_projection(), None).state_dict()


def without_norm(state: dict) -> dict:
    return {name: value for name, value in state.items() if not name.startswith("prj.ln")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_norm, "has no layer norm .prj_no_ln."),
        (lambda state: state | {"halt_head.weight": torch.ones(1)}, "no place in a model.*such as halt_head.weight"),
        (
            lambda state: (
                state | {"codi.base_model.model.transformer.wte.lora_embedding_A.default": torch.ones(4, 20)}
            ),
            "no place in a model",
        ),
        (lambda state: {n: v for n, v in state.items() if not n.endswith("0.attn.c_attn.lora_B.default.weight")},
         "adapter of transformer.h.0.attn.c_attn is not complete"),
        (
            lambda state: state | {"codi.base_model.model.lm_head.weight": torch.ones(len(tokenizer()) + 3, 32)},
            "differ, but the model",
        ),
        (lambda state: state | {"prj.1.weight": torch.ones(24, 31)}, "two linear layers and"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused_with_the_reason(tmp_path, change, words):
    save_base(tmp_path / "base", "gpt2")
    state = change(codi_state())
    torch.save(state, tmp_path / "pytorch_model.bin")
    options = ImportOptions(base=str(tmp_path / "base"))
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(str(tmp_path / "pytorch_model.bin"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_wrong_sources_and_options_say_what_to_do(tmp_path, capsys):
    rows = save_base(tmp_path / "base", "gpt2")
    base = ["--base", str(tmp_path / "base")]
    out = str(tmp_path / "out")

    def error(*arguments: str) -> str:
        assert main([*arguments]) == 2
        return capsys.readouterr().err

    path = tmp_path / "checkpoint_3"
    torch.save(Coconut(coconut_twin().model).state_dict(), path)
    assert "does not say how many thoughts" in error(str(path), out, *base)
    assert "5 thoughts are not a multiple of 2" in error(str(path), out, *base, "--n-thoughts", "5")
    assert "does not say its architecture" in error(str(path), out, "--n-thoughts", "4")
    assert "not in the format codi; its files look like reference" in error(str(path), out, "--format", "codi")
    assert "leave --method out" in error(str(path), out, "--method", "pause", *base)
    assert "SOURCE=nowhere: no such folder" in error("nowhere", out)
    assert "--base nowhere: model.model_id=nowhere: no such model type" in error(
        str(path), out, "--base", "nowhere", "--n-thoughts", "4"
    )
    assert "--tokenizer=nowhere: no such folder" in error(
        str(path), out, *base, "--tokenizer", "nowhere", "--n-thoughts", "4"
    )
    assert "holds no weights" in error(str(tmp_path / "base"), out)
    torch.save(codi_state(), tmp_path / "codi.bin")
    save_base(tmp_path / "larger", "gpt2", padded=9)
    assert f"expected {rows + 9} of the base model" in error(
        str(tmp_path / "codi.bin"), out, "--base", str(tmp_path / "larger")
    )
    # What SVP's trainer writes has the trained weights alone, and its optimizer.
    torch.save({"weights": [torch.ones(2)], "iter": 3}, tmp_path / "ckpt_epoch9.pt")
    assert "contains dict with the keys weights, iter" in error(str(tmp_path / "ckpt_epoch9.pt"), out, *base)
    (tmp_path / "several").mkdir()
    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / "several" / name).write_bytes(path.read_bytes())
    assert "several checkpoints (checkpoint_1, checkpoint_2); name one" in error(str(tmp_path / "several"), out)
    assert main([str(path), out, *base, "--n-thoughts", "4"]) == 0
    assert "is a model folder of this project" in error(out, str(tmp_path / "again"))
    assert "exists and is not a model folder" in error(str(path), str(tmp_path / "base"), *base)


def test_the_commands_of_the_manuals_are_read():
    found = 0
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md"):
        for name, words in re.findall(r"^coconut-(import|push) ([^#\n]+)", path.read_text(), flags=re.MULTILINE):
            {"import": cli.parser, "push": push.parser}[name]().parse_args(words.split())
            found += 1
    assert found >= 10


def test_the_command_offers_every_format():
    assert set(FORMATS) == {"auto", *get_args(FormatName)}
