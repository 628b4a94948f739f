"""Attacks that move or choose images; the updates are true gradients of them."""
