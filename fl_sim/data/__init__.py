"""Data sets, partitions, and the federation of clients that hold them."""
