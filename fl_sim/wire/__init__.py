"""The messages between server and workers, and how they are encoded."""
