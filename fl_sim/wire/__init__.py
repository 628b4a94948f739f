"""What travels between server and workers, and how it is written down."""
