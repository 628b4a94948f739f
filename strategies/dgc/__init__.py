"""DGC, discrepancy-aware gradient clipping."""
