"""Cache: values by kind, each kind with its own lifetime, cleared in one step."""
