"""The accumulative poisoning attack and what it is made of."""
