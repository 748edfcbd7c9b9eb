"""Redis over REST, as Upstash speaks it: the client side."""
