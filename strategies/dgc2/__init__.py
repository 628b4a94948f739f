"""DGC, second version: a tight clip, a bound on each client's persistence, attribution by class, and a way back."""
