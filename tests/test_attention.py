"""The choice of an attention kernel, and torch's fused kernel on devices where heads cannot share keys."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from coconut_ds import load_reasoner
from coconut_ds.errors import ModelError
from coconut_ds.model import attention
from coconut_ds.model.attention import check_attention, fused_attention


@pytest.mark.parametrize(
    ("name", "words"),
    [("flash_attention_2", "flash_attn.*pip install.*sdpa"), ("flashy", "unknown; expected one of sdpa, eager")],
)
def test_a_missing_attention_kernel_is_refused_with_what_to_install(name, words):
    with pytest.raises(ModelError, match=words):
        check_attention(name)


def test_flash_attention_in_fp32_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ModelError, match=r"computes in half precision.*set dtype to bfloat16"):
        load_reasoner(tmp_path, attn_implementation="flash_attention_2", dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_in_fp32_each_head_gets_keys_of_its_own_where_the_kernel_cannot_share_them(monkeypatch, dtype, masked):
    """The kernel is called with equal numbers of heads, and the result does not change; bf16 always shares keys."""
    torch.manual_seed(0)
    layer = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    query = torch.randn(2, 6, 5, 8).to(dtype)
    key, value = (torch.randn(2, 2, 5, 8).to(dtype) for _ in range(2))
    mask = torch.rand(2, 1, 5, 5) < 0.5 if masked else None
    if mask is not None:
        mask |= torch.eye(5, dtype=torch.bool)
    heads = []
    kernel = functional.scaled_dot_product_attention

    def record(query, key, value, **options):
        heads.append((query.shape[1], key.shape[1], value.shape[1]))
        return kernel(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", record)
    shared = fused_attention(layer, query, key, value, mask, 0.0, None)
    monkeypatch.setattr(attention, "NO_SHARED_KEYS", ("cpu",))
    own = fused_attention(layer, query, key, value, mask, 0.0, None)
    assert heads[1] == ((6, 6, 6) if dtype == torch.float32 else heads[0])
    torch.testing.assert_close(own, shared)
