"""`turnkeeper dev`: PostgreSQL, Redis, a provider simulator, workers and Flower, embedded in one folder."""

from turnkeeper_ops.dev.addresses import Addresses
from turnkeeper_ops.dev.folder import AlreadyRunning, environment_of
from turnkeeper_ops.dev.run import run_dev
from turnkeeper_ops.dev.stack import Stack, stack

__all__ = ["Addresses", "AlreadyRunning", "Stack", "environment_of", "run_dev", "stack"]
