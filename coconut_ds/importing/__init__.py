"""Reads checkpoints that other projects have published, and writes them as model folders of this project.

``published.py`` lists the formats and recognises them, ``tensors.py`` reads files of weights without running code,
``coconut.py`` and ``codi.py`` turn what is in them into a model that thinks, ``convert.py`` puts the parts together and
``cli.py`` is the command.
"""
