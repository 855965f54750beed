"""Engines, storage and servers that fail on purpose, plugged in where the real ones are."""
