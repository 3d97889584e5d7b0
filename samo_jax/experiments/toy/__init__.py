"""The toy experiment: landscapes that can be drawn."""
