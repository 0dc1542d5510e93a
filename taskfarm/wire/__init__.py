"""Frames and their encoding; no input or output happens here."""
