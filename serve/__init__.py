"""An inference server for checkpoints that reason in continuous thoughts, and a browser app.

``service`` runs requests and knows nothing of HTTP; ``api`` implements OpenAI's HTTP protocol on top of it; ``app`` is
the browser app. Start the server with ``python -m serve api --checkpoint FOLDER``. This package imports ``coconut_ds``,
which never imports it.
"""
