"""Reports on files of problems: `statistics` computes them, `text` and `picture` present them."""
