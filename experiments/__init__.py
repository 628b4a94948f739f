"""What is run: the ServerApp, the phases of a run, sweeps, presets, figures and the command line."""
