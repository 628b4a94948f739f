"""What an attack took of each class, beside the same run without it."""
