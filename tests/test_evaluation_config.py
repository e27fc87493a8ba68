"""The settings of an evaluation: which data, which method, and what is refused."""

from pathlib import Path

import pytest

from coconut_ds.errors import ConfigError
from coconut_ds.settings.compose import (
    compose_eval_config,
)


def test_an_evaluation_takes_an_option_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my data.json"
    file.touch()
    named = compose_eval_config(["checkpoint=C", "data=gsm_eval", "data.max_new_tokens=5"])
    assert (named.data_name, named.data.test_path, named.data.max_new_tokens) == ("gsm_eval", "data/gsm_test.json", 5)
    own = compose_eval_config(["checkpoint=C", f"data={file}", "n_thoughts=0"])
    assert (own.data_name, own.data.kind, own.data.test_path) == ("my data", "file", str(file))
    assert (named.n_thoughts, own.n_thoughts) == (None, 0)


def test_an_evaluation_can_set_the_method() -> None:
    assert compose_eval_config(["checkpoint=C", "data=gsm_eval", "method=cot"]).method == "cot"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=gsm_eval"], ["checkpoint: missing", "set checkpoint="]),
        (["checkpoint=C"], ["data: missing", "set data=prosqa_eval"]),
        (["checkpoint=C", "data=no.json"], ["data=no.json: no such file and no such option", "gsm_eval"]),
        (["checkpoint=C", "data=gsm_eval", "lr=1"], ["lr=1", "no group has this key"]),
        (["checkpoint=C", "data=gsm_eval", "run=gsm_cot"], ["run=gsm_cot", "no group has this key"]),
        (["checkpoint=C", "data=gsm_eval", "method=cott"], ["method: found 'cott'", "unknown method", "no_thoughts"]),
    ],
)
def test_an_invalid_evaluation_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_eval_config(overrides)
    assert [word for word in words if word not in str(caught.value)] == []
