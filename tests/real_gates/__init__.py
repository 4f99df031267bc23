"""Real gates of nothing and of planted faults, counted over many sessions: how often the gate is right, and others."""
