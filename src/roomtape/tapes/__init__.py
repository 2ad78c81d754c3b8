"""Floor 1½: what lies on a tape: the ledger's rows and the segments' indexes read together, for the rooms that make things and the rooms that show them."""
