"""Tests: one file per module, and what runs through all of them."""
