"""SGD that prunes directions of curvature."""
