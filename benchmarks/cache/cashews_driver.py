"""cashews on Redis."""

from benchmarks.cache.cashews_client import opened
from benchmarks.cache.load import serve_cache

serve_cache(opened)
