"""Many runs: sweeps, searches, and the studies that they leave."""
