"""From training steps to Lyapunov exponents: tangent maps, growth of deviations, analyzers."""
