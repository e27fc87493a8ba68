"""Links to a view of the app."""

from urllib.parse import parse_qsl

from hypothesis import given
from hypothesis import strategies as st

from serve.app.permalink import NAMES, PAGES, View, decimal_of, number_of, query_of, text_of, view_of
from serve.app.studio import MAX_CHARACTERS

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.builds(View, st.sampled_from(PAGES), *[texts] * (len(NAMES) - 1)))
def test_a_link_holds_the_whole_view(view):
    query = query_of(view)
    assert view_of(dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))) == view
    assert query.isascii()
    assert not set("<>\"' ") & set(query)


def test_a_link_that_makes_no_sense_is_but_a_start():
    assert view_of({"view": "etc", "model": "x" * (MAX_CHARACTERS + 1), "other": "1"}) == View()
    assert [decimal_of(text, 0, 4) for text in ("0", "0.5", "4", "4.1", "-1", "nan", "x", "")] == [0, 0.5, 4] + [
        None
    ] * 5
    assert [text_of(value) for value in (None, 2.0, 0.5, ["a", "b"], 0)] == ["", "2", "0.5", "a,b", "0"]
    long = ("9" * 10, "9" * 5000, "0" * 8 + "9" * 10)
    assert [number_of(text, 0, 999_999_999) for text in long] == [None] * 3
    assert [number_of(text, 1, 8) for text in ("0", "1", "8", "9", "x", "", "²", "9" * 99)] == [None, 1, 8] + [None] * 5
