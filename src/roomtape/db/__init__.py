"""Floor 1: the only SQL. The ledger is the truth; files are only bytes."""
