"""What clients do: the ClientApp, honest updates, the coalition and its attacks."""
