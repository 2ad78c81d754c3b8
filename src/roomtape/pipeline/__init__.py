"""Floor 2: what is made from the ledger, planned anew after every change."""
