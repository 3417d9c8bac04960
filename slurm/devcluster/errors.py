"""What can go wrong with a development cluster.

    DevclusterError
    |-- UsageError     (2)  a value that no cluster can be made with
    |-- NotPossible    (3)  not root, packages missing or not to be installed
    |-- StartFailed    (3)  a daemon did not start
    |-- StopFailed     (3)  something outlived `down`
    |-- AlreadyUp      (1)  `up` in the directory of a running cluster
    `-- NotUp          (1)  `env`, `status`, `restart` without a running cluster

In parentheses: the command's exit status.
"""

from __future__ import annotations


class DevclusterError(Exception):
    """Base of all; its text is for the user."""

    exit_status = 3


class UsageError(DevclusterError):
    """A value that no cluster can be made with."""

    exit_status = 2


class NotPossible(DevclusterError):
    """This machine or this user can't run a cluster."""


class StartFailed(DevclusterError):
    """A daemon did not start."""


class StopFailed(DevclusterError):
    """Something outlived `down`."""


class AlreadyUp(DevclusterError):
    """A cluster runs in that directory."""

    exit_status = 1


class NotUp(DevclusterError):
    """No cluster runs in that directory."""

    exit_status = 1
