"""Problems, and the files and generators they come from. Most modules here work without torch."""
