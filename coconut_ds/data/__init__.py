"""Problems and where they come from: files and generators. Plain data, no torch."""
