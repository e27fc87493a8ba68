"""Command-line options by subject, and the settings that they become."""
