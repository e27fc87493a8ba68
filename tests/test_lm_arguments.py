"""Arguments of the model and settings of tasks that lm-evaluation-harness passes on."""

import importlib.util
from collections.abc import Callable

import pytest

from coconut_ds.errors import DataError

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("needs the extra: pip install -e '.[harness]'", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def writing() -> Callable[..., object]:
    """How a task's ``generation_kwargs`` are understood."""
    from lm_eval.models.utils import normalize_gen_kwargs

    from coconut_ds.lm_model.arguments import stated, writing_of

    return lambda **options: writing_of(normalize_gen_kwargs(stated(options), 7), seed=0, index=0)


def test_generation_settings_that_change_nothing_are_accepted(writing):
    plain = writing(until=["a"])
    assert (plain.max_new_tokens, plain.stop, plain.sampling.temperature) == (7, ("a",), 0)
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": 0, "use_cache": False, "length_penalty": 0.6}
    assert writing(until="a", do_sample=False, temperature=0.0, top_k=None, **neutral) == plain
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert writing(until=["a"], **{name: 3}).max_new_tokens == 3
    assert [writing(until=[], do_sample=True, temperature=1, top_k=k).sampling.top_k for k in (-1, 0, 4)] == [
        None,
        None,
        4,
    ]


@pytest.mark.parametrize(
    "changed", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"min_new_tokens": 3}, {"unknown": 1}]
)
def test_generation_settings_that_would_change_the_text_are_refused(changed, writing):
    ((key, value),) = changed.items()
    with pytest.raises(DataError, match=f"generation_kwargs: found {key}={value}; expected until"):
        writing(until=["a"], **changed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": 2024.1}, "path: found the float 2024.1, expected text"),
        ({"path": "P", "n_thoughts": "two"}, "n_thoughts=two: expected a whole number"),
        (
            {"path": "P", "trust_remote_code": True},
            "model_args: found trust_remote_code; expected path=FOLDER, and any of",
        ),
        ({}, "model_args: found no path; expected path=FOLDER"),
    ],
)
def test_wrong_model_arguments_are_refused(arguments, words):
    from coconut_ds.lm_model.model import CoconutLM

    with pytest.raises(DataError, match=words):
        CoconutLM.create_from_arg_obj(arguments, {"device": "cpu", "batch_size": 1, "max_batch_size": None})
