"""The audit log: what happened, in chains of hashes, written in the transaction of what it tells."""
