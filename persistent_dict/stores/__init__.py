"""Stores: places for entries."""
