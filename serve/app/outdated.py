"""Hides the results of a page once the checkpoint, the question or the number of thoughts differs from what was asked.

The browser does this alone: it remembers with which values each page was asked, and names the pages whose values differ
now in an attribute of the document, ``data-outdated``. Returning to the old values shows the results again.
"""

VALUES = """<script>
window.asked = {
  of: {}, now: null,
  keys: ([model, file, question, thoughts]) => ({
    problem: JSON.stringify([model, question, thoughts]), dataset: JSON.stringify([model, file, thoughts])}),
  show() {
    const current = page => this.now[page] ?? this.now.problem;
    const pages = Object.keys(this.of).filter(page => this.of[page] !== current(page));
    document.documentElement.dataset.outdated = pages.join(' ');
  },
  change(values) { this.now = this.keys(values); this.show(); },
  ask(page, values) {
    const keys = this.keys(values), own = page in keys ? page : 'problem';
    this.of[page] = keys[own];
    // A measurement of a data set is asked without a question.
    this.now = {...(this.now ?? keys), [own]: keys[own]};
    this.show();
  },
};
</script>"""
"""Part of the document's head. Values are those of ``Bar.question_inputs``."""
CHANGED = "(...values) => { window.asked.change(values); return []; }"
"""Handler of changed values, whose inputs are ``Bar.question_inputs``."""
PAGES = ("think", "search", "intervene", "compare", "states", "dataset")
STYLE = "".join(
    f'html[data-outdated~="{page}"] .of-{page}, html:not([data-outdated~="{page}"]) .instead-{page} '
    "{ display: none !important; }\n"
    for page in PAGES
)
"""Components with the class ``of-PAGE`` are hidden while the page is outdated, those with ``instead-PAGE`` are not."""


def asking(page: str, values: str = "values.slice(0, 4)") -> str:
    """JavaScript that notes with which values a page is asked, and passes the handler's inputs on.

    Args:
        page: name of the page.
        values: JavaScript expression for the values of ``Bar.question_inputs``, given all inputs as ``values``.
    """
    return f"(...values) => {{ window.asked.ask('{page}', {values}); return values; }}"
