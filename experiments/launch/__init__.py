"""From keys to a complete run: checks before it, processes, progress."""
