"""A run's folder on disk, and trackers."""
