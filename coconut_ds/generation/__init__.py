"""Generation: the thinking engine, which runs many requests at a time over one key/value cache, and its parts."""
