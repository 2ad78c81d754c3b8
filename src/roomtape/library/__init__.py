"""Floor 2: what people see of recordings: catalog, playback, retention."""
