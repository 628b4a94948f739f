"""The server's side: rules, the server's optimiser, and the strategies that combine updates with them."""
