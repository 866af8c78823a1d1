"""GraSS in JAX: contrastive pretraining with gradient guided sampling (arXiv 2306.15868)."""
