"""An inference server for checkpoints that think: a service layer, and an HTTP layer that speaks OpenAI's protocol.

``python -m serve api --checkpoint FOLDER``. Imports ``coconut_ds``, which never imports it.
"""
