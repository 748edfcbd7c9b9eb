"""Rate limits: how often somebody may do something, decided in one place for all processes."""
