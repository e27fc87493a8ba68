"""Creates HTML: tables, notices, progress. All text is escaped; other modules of pages do not write HTML themselves."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from coconut_ds.data.encoding import Place


def shown_token(token: str) -> str:
    """A token as visible text: newlines, blank tokens and the empty token are shown as symbols."""
    shown = token.replace("\n", "⏎")
    if shown and not shown.strip():
        return "␣" * len(shown)
    return shown.strip() or "∅"


def one_line(text: str) -> str:
    """A text of several lines as one line, with a symbol for each line break."""
    return " ⏎ ".join(part.strip() for part in text.strip().split("\n"))


def html_table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> str:
    """A table.

    Args:
        caption: title of the table.
        headers: titles of the columns; the cells of the first column are the titles of the rows.
        rows: texts of the cells.
        strong: index of a row to highlight.
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
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def notice(text: str) -> str:
    """An error message."""
    return f'<div class="notice" role="alert">{escape(text)}</div>'


def hint(text: str) -> str:
    """An explanation of what figures show and do not show."""
    return f'<p class="hint">{escape(text)}</p>'


def fact(text: str) -> str:
    """A sentence about what is selected."""
    return f'<p class="fact">{escape(text)}</p>'


def empty(text: str) -> str:
    """A placeholder for results."""
    return f'<p class="empty">{escape(text)}</p>'


def busy(text: str) -> str:
    """A placeholder for results that are being computed. What is shown from before is dimmed meanwhile."""
    return f'<p class="empty busy" role="status" aria-busy="true">{escape(text)}</p>'


def folded(summary: str, inside: str) -> str:
    """HTML that is shown once the visitor opens it; ``inside`` is HTML, made by other functions of this module."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def answer(text: str, written: str, right: str | None, is_right: bool | None, label: str = "answer") -> str:
    """An answer below a label, the generated text that contains it, and the right answer if it is known."""
    mark = {None: "", True: '<span class="mark">✓ right</span>', False: '<span class="mark">✗ wrong</span>'}[is_right]
    known = f'<p class="known">right answer: {escape(right)}</p>' if right is not None else ""
    return (
        f'<div class="answer" role="status"><p class="label">{escape(label)} {mark}</p><p class="big">'
        f'{escape(text) or "(none)"}</p><p class="label">generated text</p><pre>{escape(written) or "(nothing)"}</pre>'
        f"{known}</div>"
    )


def unknown(question: str, places: Sequence[Place]) -> str:
    """The question with the words marked that the model does not know; empty if it knows all."""
    if not places:
        return ""
    parts, end = [], 0
    for place in places:
        parts += [escape(question[end : place.start]), f"<mark>{escape(question[place.start : place.end])}</mark>"]
        end = place.end
    return (
        '<div class="answer"><p class="label">The model does not know the marked words; it reads each of them '
        f"as its unknown token.</p><pre>{''.join(parts)}{escape(question[end:])}</pre></div>"
    )


def thinking(done: int, total: int, text: str) -> str:
    """An answer that is being generated: the thoughts completed so far, and the text."""
    dots = "●" * done + "○" * max(total - done, 0)
    state = f"{done} of {total} thoughts completed" if done < total else "generating text"
    return (
        f'<div class="answer busy" aria-busy="true"><p class="label">{state} <span aria-hidden="true">{dots}</span></p>'
        f"<pre>{escape(text)}▌</pre></div>"
    )


def progress(name: str, done: int, total: int) -> str:
    """A progress bar; ``total`` is 0 until the first progress report."""
    if not total:
        return f'<label class="bar busy">{escape(name)}: waiting<progress></progress></label>'
    return (
        f'<label class="bar busy">{escape(name)}: {done:,} of {total:,}'
        f'<progress value="{done}" max="{total}"></progress></label>'
    )


def download(name: str, media_type: str, content: bytes, label: str) -> str:
    """A download link that contains the whole file as a ``data:`` URL, so that the server does not store files."""
    return f'<a class="file" download="{escape(name)}" href="data:{media_type},{quote(content)}">{escape(label)}</a>'


def finding(text: str) -> str:
    """A result in one sentence."""
    return f'<p class="finding" role="status">{escape(text)}</p>'


def heading(text: str, below: str) -> str:
    """The heading of the whole app, with a text below."""
    return f'<div class="app-title"><h1>{escape(text)}</h1><p>{escape(below)}</p></div>'


def title(text: str, below: str) -> str:
    """The title of a column, with a text below."""
    return f'<p class="side-title">{escape(text)}</p><p class="side-text">{escape(below)}</p>'
