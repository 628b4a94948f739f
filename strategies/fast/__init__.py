"""What rules compute, in a tenth of the time: distances between updates, sorted coordinates, stages of ByzFL."""
