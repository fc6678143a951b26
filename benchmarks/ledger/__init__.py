"""The ledger: what llm-train's step takes and does on devices that are not here."""
