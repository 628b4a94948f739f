"""Backdoors: members train on images that carry a trigger, so that the model gives such images the attacker's class."""
