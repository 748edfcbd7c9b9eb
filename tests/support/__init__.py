"""Real servers for tests, and ways to hurt them.

Handles of processes are synchronous, so that a session's fixture serves the event loop of every test; what takes long
is `async` and runs in a thread. Nothing here knows how counterseal talks to Redis.
"""
