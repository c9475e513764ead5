"""What is computed from a model's output: losses, scores, costs."""
