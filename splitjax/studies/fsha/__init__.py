"""Feature-space hijacking: a cloud that attacks, and what helps against it."""
