"""Every registered data source can be opened, and every source has an option of ``config/data``."""

import pytest

from coconut_ds.data.sources import open_source
from coconut_ds.settings.compose import compose_config, option_names
from coconut_ds.settings.data import SOURCES

FILES = ["data.train_path=T", "data.val_path=V"]


@pytest.mark.parametrize("option", option_names()["data"])
def test_every_option_opens_a_source_that_draws_its_problems_from_the_seed(option: str) -> None:
    data = compose_config([f"data={option}", *FILES, "size.train=2", "size.valid=2", "size.test=2"]).data
    sources = [open_source(data, seed) for seed in (0, 0, 1)]
    assert {f"{type(source).__module__}:{type(source).__name__}" for source in sources} == {SOURCES[data.kind]}
    if data.kind != "file":
        assert sources[0].train(0) == sources[1].train(0) != sources[2].train(0)
        assert [len(problems) for problems in (sources[0].valid(), sources[0].test())] == [2, 2]
        assert sources[0].vocabulary()


def test_every_source_has_an_option() -> None:
    kinds = {compose_config([f"data={option}", *FILES]).data.kind for option in option_names()["data"]}
    assert kinds == set(SOURCES)
