"""Reports on files of problems: `statistics`, and what is made of them, `text` and `picture`."""
