"""Studies that train and compare several small models: the demo, all methods, and what thoughts contain."""
