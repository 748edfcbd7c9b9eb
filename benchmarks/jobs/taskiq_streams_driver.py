"""taskiq with streams, which it acknowledges after the job; batches of 100 are its default."""

from taskiq_redis import RedisStreamBroker

from benchmarks.jobs.taskiq_queue import serve_taskiq

if __name__ == "__main__":
    serve_taskiq(RedisStreamBroker, "XLEN")
