"""The browser app that shows, tests and compares continuous thoughts: ``python -m serve app``.

``studio`` checks input and runs requests, ``measures`` computes ``results``; ``charts``, ``state_charts``, the
``*_figures`` modules, ``graph_layout``, ``graph_drawing`` and ``markup`` display them. None of these depends on Gradio.
Each page (``think``, ``search``, ``intervene``, ``states``, ``compare``, ``dataset``, ``export``) is a module with the
page's components and event handlers; ``question`` is the bar above all pages, ``opening`` restores the view of a link,
and ``layout`` assembles the app.
"""
