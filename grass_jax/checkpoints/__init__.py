"""Checkpoints: written, read, checked, and who may go on from them."""
