"""The accumulative poisoning attack and its parts."""
