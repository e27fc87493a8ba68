"""The app: thoughts seen, tested and compared in a browser. ``python -m serve app``.

``studio`` is what the pages work on, ``figures``, ``graph_drawing`` and ``markup`` are how results look; none of them
knows Gradio. A page (``think``, ``search``, ``intervene``, ``compare``, ``dataset``, ``export``) is a small file of
components and what happens when they are used; ``layout`` puts the pages together.
"""
