"""The clients' side: the ClientApp, honest updates, the coalition and its attacks."""
