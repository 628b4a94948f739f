"""Published defences, one file each, as functions `(updates (n, d), weights (n,), **options) -> (d,)`."""
