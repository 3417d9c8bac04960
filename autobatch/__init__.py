"""autobatch measures the largest batch_size that a torchtune run can train with.

    >>> import autobatch
    >>> result = autobatch.probe("runs/run1")  # doctest: +SKIP
    >>> result.batch_size  # doctest: +SKIP
    24

Importing autobatch imports none of torch, torchtune, submitit or yaml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autobatch.api import probe as probe
    from autobatch.api import probe_all as probe_all
    from autobatch.records import ProbeResult as ProbeResult
    from autobatch.records import Status as Status

__all__ = ["ProbeResult", "Status", "__version__", "probe", "probe_all"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("probe", "probe_all"):
        from autobatch import api

        return getattr(api, name)
    if name in ("ProbeResult", "Status"):
        from autobatch import records

        return getattr(records, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
