"""cashews with its client-side cache: Redis tells it what has changed, and it hands out what it has in memory."""

from functools import partial

from benchmarks.cache.cashews_client import opened
from benchmarks.cache.load import serve_cache
from benchmarks.cache.profile import profile

serve_cache(partial(opened, client_side=True), profile)
