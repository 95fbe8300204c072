"""Counts unique ids exactly, per minute, over many processes and machines."""

__version__ = "0.1.0"
