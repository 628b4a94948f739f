"""Flower's Grid over virtual clients, and the transports to their workers."""
