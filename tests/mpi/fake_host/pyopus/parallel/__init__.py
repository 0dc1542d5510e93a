"""Parallel part of the stand-in."""
