"""Local training of clients: updates, their norms and their clips."""
