"""Voices of Piper, in the jail: what is in their files, and how they speak."""
