"""Floor 1: where bytes lie, and when they are durable."""
