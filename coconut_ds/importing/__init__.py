"""Reads checkpoints that other projects have published, and writes them as model folders of this project.

``published.py`` lists the formats and recognises them, ``tensors.py`` reads files of weights without running code,
``codi.py`` turns what CODI's files hold into a model that thinks, ``convert.py`` does so for the other formats and puts
the parts together, and ``cli.py`` is the command.
"""
