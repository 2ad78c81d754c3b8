"""Floor 1: containers, codecs and the only door to decoders."""
