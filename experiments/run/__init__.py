"""One run: its tracks, its history, its summary."""
