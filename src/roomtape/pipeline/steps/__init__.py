"""One file per kind of artifact."""
