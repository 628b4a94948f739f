"""What an honest client does to its own images before it trains on them."""
