"""taskiq with a list, from which a job is gone when it starts."""

from taskiq_redis import ListQueueBroker

from benchmarks.jobs.taskiq_queue import serve_taskiq

if __name__ == "__main__":
    serve_taskiq(ListQueueBroker, "LLEN")
