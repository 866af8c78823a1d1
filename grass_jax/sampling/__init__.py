"""Gradient guided sampling: loss attention map -> salient box -> guided view."""
