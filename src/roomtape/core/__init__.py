"""Floor 0: decides. Values in, values out; no I/O, no clock, no asyncio."""
