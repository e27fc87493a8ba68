"""Hashes of weights and tokenizers depend on content alone."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.tokens import add_markers, build_word_tokenizer, digest_tokenizer
from coconut_ds.model.digest import digest_state


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return {"a": values, "b": values.bfloat16(), "c": torch.tensor(1), "d": torch.empty(0), **changes}


def test_a_state_is_its_names_types_shapes_and_bytes() -> None:
    values = state()["a"]
    base = digest_state(state().items())
    assert digest_state((name, tensor) for name, tensor in reversed(state().items())) == base
    # The memory layout does not matter.
    assert digest_state(state(a=values.t().contiguous().t()).items()) == base
    changed = [
        state(a=values.view(torch.int32)),
        state(a=values.reshape(3, 2)),
        state(a=values + 1e-6),
        state(b=torch.nextafter(values, values + 1).bfloat16() + 1),
        state(c=torch.tensor(1.0)),
        {name.replace("a", "e"): tensor for name, tensor in state().items()},
        {name: tensor for name, tensor in state().items() if name != "d"},
    ]
    assert len({base, *(digest_state(each.items()) for each in changed)}) == len(changed) + 1


def test_a_tokenizer_is_identified_by_what_it_makes_of_text(tmp_path: Path) -> None:
    def words(*extra: str) -> PreTrainedTokenizerBase:
        return build_word_tokenizer(["Tom is a bompus", *extra])

    base = digest_tokenizer(words())
    words().save_pretrained(tmp_path)
    used = type(words()).from_pretrained(tmp_path)
    assert digest_tokenizer(used) == base
    used("Tom is", truncation=True, max_length=1)
    assert digest_tokenizer(used) == base
    add_markers(used)
    assert len({base, digest_tokenizer(used), digest_tokenizer(words("cat"))}) == 3
