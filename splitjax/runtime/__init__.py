"""Edge and cloud as real processes: frames, channels, meters."""
