"""The test kit of applications: a server of their own, jobs run in place, time that passes at once, and faults."""

from counterseal.testing.enqueued import assert_enqueued
from counterseal.testing.inline import drain
from counterseal.testing.relay import Relay
from counterseal.testing.server import PrivateServer
from counterseal.testing.travel import travel
from counterseal.testing.worker_process import WorkerProcess

__all__ = ["PrivateServer", "Relay", "WorkerProcess", "assert_enqueued", "drain", "travel"]
