"""Training with compressed activations."""
