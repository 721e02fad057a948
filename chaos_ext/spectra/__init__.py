"""From a Hessian to its eigenpairs: all of them exactly, or a few by Lanczos."""
