"""What a client does with its batches: local training, norms and clips."""
