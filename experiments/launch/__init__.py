"""From checked keys to a finished run: preflight, processes, progress."""
