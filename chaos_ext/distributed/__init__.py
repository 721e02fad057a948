"""Several processes that compute one thing: torch.distributed, with fixed orders of sums and named failures."""
