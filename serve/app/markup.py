"""HTML: tables, notices, progress. All text passes ``html.escape``; whoever writes markup writes it here."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote


def shown_token(token: str) -> str:
    """A token that can be seen: newlines and spaces as signs."""
    shown = token.replace("\n", "⏎")
    if shown and not shown.strip():
        return "␣" * len(shown)
    return shown.strip() or "∅"


def html_table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> str:
    """A table of texts.

    Args:
        caption: what it shows.
        headers: of the columns; the first column heads its rows.
        rows: cells.
        strong: index of a row that stands out.
    """
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in headers)
    body = "".join(
        f'<tr{" class=strong" if index == strong else ""}><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(one)}</td>" for one in rest)
        + "</tr>"
        for index, (first, *rest) in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def notice(text: str) -> str:
    """What a visitor can mend, or has to know."""
    return f'<div class="notice" role="alert">{escape(text)}</div>'


def hint(text: str) -> str:
    """What a picture does and does not show."""
    return f'<p class="hint">{escape(text)}</p>'


def empty(text: str) -> str:
    """Stands where results will be."""
    return f'<p class="empty">{escape(text)}</p>'


def answer(text: str, written: str, right: str | None, is_right: bool | None) -> str:
    """An answer, the text that it was taken from, and the right one where it is known."""
    mark = {None: "", True: '<span class="mark">✓ right</span>', False: '<span class="mark">✗ wrong</span>'}[is_right]
    known = f'<p class="known">right answer: {escape(right)}</p>' if right is not None else ""
    return (
        f'<div class="answer" role="status"><p class="label">answer {mark}</p><p class="big">'
        f'{escape(text) or "(none)"}</p><p class="label">all it wrote</p><pre>{escape(written) or "(nothing)"}</pre>'
        f"{known}</div>"
    )


def thinking(done: int, total: int, text: str) -> str:
    """An answer that is on its way."""
    dots = "●" * done + "○" * max(total - done, 0)
    state = f"thinking, {done} of {total}" if done < total else "writing"
    return (
        f'<div class="answer" aria-busy="true"><p class="label">{state} <span aria-hidden="true">{dots}</span></p>'
        f"<pre>{escape(text)}▌</pre></div>"
    )


def progress(name: str, done: int, total: int) -> str:
    """How far a long piece of work is."""
    if not total:
        return f'<label class="bar">{escape(name)}: waiting for its turn<progress></progress></label>'
    return (
        f'<label class="bar">{escape(name)}: {done:,} of {total:,}'
        f'<progress value="{done}" max="{total}"></progress></label>'
    )


def download(name: str, kind: str, content: bytes, label: str) -> str:
    """A link that holds a whole file, so that the server keeps none."""
    return f'<a class="file" download="{escape(name)}" href="data:{kind},{quote(content)}">{escape(label)}</a>'


def finding(text: str) -> str:
    """What came out, in a sentence."""
    return f'<p class="finding" role="status">{escape(text)}</p>'


def title(text: str, below: str) -> str:
    """Heads one of two columns."""
    return f'<p class="side-title">{escape(text)}</p><p class="side-text">{escape(below)}</p>'
