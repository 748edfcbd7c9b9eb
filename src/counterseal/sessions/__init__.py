"""Sessions: who is logged in on which device, in the database and as a copy in Redis. Revocations win."""
