"""The durable record: PostgreSQL, or SQLite in the data folder."""
