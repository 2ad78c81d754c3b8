"""Floor 3: the HTTP door: parse, call one function, render."""
