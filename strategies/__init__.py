"""What the server does with updates: rules, the server optimiser and the Flower strategy that hosts them."""
