"""Floor 2: how media enters: one file or folder per meeting stack, all onto the same tape."""
