"""Weights in and out, under the names of other libraries."""
