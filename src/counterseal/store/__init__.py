"""One connection to Redis, whichever it is: native, Upstash REST, or a Valkey that is started here."""
