"""``CoconutForCausalLM``: transformers' interface, the tokens of ``load_reasoner`` and the logits of the slow loop."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from making import make_backbone, make_card
from making_feeds import save_with_feed
from slow_loop import slow_logits
from transformers import GenerationConfig

from coconut_ds.errors import DataError
from coconut_ds.hf import CoconutForCausalLM
from coconut_ds.methods.layout import Layout
from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import Reasoner, load_reasoner

QUESTIONS = ["1 + 2", "3", "2 + 2 ="]


def new_tokens(model: CoconutForCausalLM, made: torch.Tensor, width: int) -> list[list[int]]:
    """The tokens after the prompts, up to the end of sequence."""
    rows, eos = made[:, width:].tolist(), model.tokenizer.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@pytest.fixture(scope="module", params=["jacobi", "feed"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("hf") / "model"
    if request.param == "feed":
        save_with_feed(place)
        return place
    backbone = make_backbone("llama", seed=4)
    card = replace(make_card(backbone), iterations=2)
    save_model(place, backbone.model, backbone.model.state_dict(), backbone.tokenizer, card)
    return place


def test_generate_gives_the_tokens_of_load_reasoner(folder):
    model, reasoner = CoconutForCausalLM.from_pretrained(folder), load_reasoner(folder)
    prompts = model.prompts(QUESTIONS)
    width = prompts["input_ids"].shape[1]
    for settings, ours in (
        ({}, {}),
        ({"n_thoughts": 0}, {"n_thoughts": 0}),
        ({"n_thoughts": 2, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2, "seed": 7},
         {"n_thoughts": 2, "temperature": 1.5, "samples": 2, "seed": 7}),
        ({"do_sample": True, "top_k": 3, "top_p": 0.9}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}),
    ):  # fmt: skip
        made = model.generate(**prompts, max_new_tokens=5, **settings)
        answers = reasoner.generate(QUESTIONS, max_new_tokens=5, **ours)
        assert new_tokens(model, made, width) == [answer.completion.tokens for answer in answers]
        copies = settings.get("num_return_sequences", 1)
        assert torch.equal(made[:, :width], prompts["input_ids"].repeat_interleave(copies, 0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> CoconutForCausalLM:
    place = tmp_path_factory.mktemp("hf") / "model"
    save_with_feed(place)
    return CoconutForCausalLM.from_pretrained(place, dtype="float32", device="cpu")


def test_padding_on_either_side_and_a_marker_at_the_end_change_nothing(model):
    rows = model.reasoner.prompter.encode(QUESTIONS)
    wanted = [answer.completion.tokens for answer in model.reasoner.generate(QUESTIONS, max_new_tokens=4)]
    start = model.reasoner.backbone.markers.start
    for left in (True, False):
        for marker in ([], [start]):
            width = max(map(len, rows)) + len(marker)
            ids, mask = torch.full((3, width), 1), torch.zeros(3, width, dtype=torch.long)
            for row, tokens in enumerate(rows):
                place = slice(width - len(tokens) - len(marker), width) if left else slice(0, len(tokens) + len(marker))
                ids[row, place], mask[row, place] = torch.tensor([*tokens, *marker]), 1
            made = model.generate(ids, attention_mask=mask, max_new_tokens=4, pad_token_id=0)
            assert new_tokens(model, made, width) == wanted
    alone = model.generate(torch.tensor([rows[0]]), max_length=len(rows[0]) + 4)
    assert new_tokens(model, alone, len(rows[0])) == wanted[:1]


def test_thoughts_and_settings_of_tools(model):
    prompts = model.prompts(QUESTIONS[0])
    config = GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=True, num_beams=1, eos_token_id=None)
    made = model.generate(
        **prompts, generation_config=config, n_thoughts=2, return_dict_in_generate=True, output_thoughts=True
    )
    answer = model.reasoner.generate(QUESTIONS[0], n_thoughts=2, max_new_tokens=3, keep_thoughts=True)[0]
    assert torch.equal(made.thoughts[0], answer.thoughts)
    assert made.num_thoughts.tolist() == [2]
    assert made.sequences.shape[1] <= prompts["input_ids"].shape[1] + 3
    # Tools pass the defaults of transformers explicitly.
    defaults = GenerationConfig._get_default_generation_params() | {"output_attentions": False, "synced_gpus": False}
    plain = model.generate(**prompts, max_new_tokens=3)
    assert torch.equal(model.generate(**prompts, **{**defaults, "max_length": None}, max_new_tokens=3), plain)
    for wrong, words in (
        ({"num_beams": 4}, "num_beams=4: is not supported"),
        ({"output_attentions": True}, "output_attentions=True: is not supported"),
        ({"eos_token_id": 7}, "the ends of text are those of the checkpoint"),
        ({"max_length": 2}, "expected 1 or more"),
        ({"min_thoughts": 9}, "min_thoughts=9: expected at most 6"),
    ):
        with pytest.raises(DataError, match=words):
            model.generate(**prompts, **wrong)
    latent = torch.tensor([[1, model.reasoner.backbone.markers.thought]])
    with pytest.raises(DataError, match=r"contains the thought marker <\|latent\|>"):
        model.generate(latent)
    with pytest.raises(DataError, match="dtype=float99: expected a type of torch"):
        CoconutForCausalLM.from_pretrained("x", dtype="float99")


def test_forward_gives_the_logits_of_the_slow_loop(model, tmp_path):
    """Sequences with thoughts and without, padded on either side; the loss is that of transformers."""
    markers, backbone = model.reasoner.backbone.markers, model.reasoner.backbone
    thinking = [3, 4, markers.start, *[markers.thought] * 2, markers.end, 5, 6]
    rows = [thinking, [3, 4, 5]]
    ids, mask = torch.ones(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    ids[0, 1:], mask[0, 1:] = torch.tensor(rows[0]), 1
    ids[1, :3], mask[1, :3] = torch.tensor(rows[1]), 1
    labels = torch.full_like(ids, -100)
    labels[0, -2:], labels[1, 2] = ids[0, -2:], ids[1, 2]
    with torch.no_grad():
        made = model(ids, attention_mask=mask, labels=labels, use_cache=False)
    slow = []
    for row, place in ((0, slice(1, 9)), (1, slice(0, 3))):
        count = rows[row].count(markers.thought)
        layout = Layout(rows[row], [-100] * len(rows[row]), 3 if count else len(rows[row]), count)
        slow.append(slow_logits(backbone.model, layout, feed=backbone.feed).detach())
        torch.testing.assert_close(made.logits[row, place], slow[row], rtol=1e-4, atol=1e-5)
    wanted = torch.cat([slow[0][-3:-1], slow[1][1:2]])
    torch.testing.assert_close(made.loss, F.cross_entropy(wanted, torch.tensor([5, 6, 5])), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = CoconutForCausalLM.from_pretrained(tmp_path / "saved", n_thoughts=1)
    assert (again.n_thoughts, again.can_generate(), again.device, again.dtype) == (1, True, model.device, model.dtype)
    assert isinstance(again.reasoner, Reasoner)
    assert again.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape
    assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()
