"""The estimate as a probe asks for it: in the metric that the probe measures."""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.estimate.cards import CONTEXT_BYTES, HOPPER, workspace_bytes
from autobatch.estimate.estimator import KEPT
from autobatch.estimate.recording import Recorded, recorded
from autobatch.estimate.subject import subject_of
from autobatch.estimate.trace import Peak
from autobatch.probing.forecast import Forecast, Occasion
from autobatch.records import Metric

_MIB = 2**20

#: Resident memory of a process on CPU that isn't tensors, beyond what it has when the recipe begins: what the
#: recipe's own imports and its first steps add. Measured on torch 2.13.0+cpu
#: (tests/benchmarks/results/estimates-cpu.md); bf16 loads kernels of oneDNN that fp32 doesn't.
_SETUP_BYTES = 15 * _MIB
KERNELS_BYTES = {"fp32": 16 * _MIB, "bf16": 30 * _MIB}


@dataclass(frozen=True)
class CurveForecast:
    """Peaks from a curve, in one metric.

    Attributes:
        recorded: the curve.
        metric: that counts.
        process_bytes: on CPU, resident memory without tensors when the recipe is set up.
        kernels_bytes: on CPU, what computing adds to that.
    """

    recorded: Recorded
    metric: Metric
    process_bytes: int = 0
    kernels_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Time that recording took."""
        return self.recorded.seconds

    def peak_bytes(self, batch_size: int) -> int:
        """The predicted peak."""
        return self._of(self.recorded.curve.at(batch_size))

    def largest(self, target_bytes: int, at_most: int) -> int:
        """The largest batch_size whose predicted peak is at most `target_bytes`."""
        return self.recorded.curve.largest(lambda peak: self._of(peak) <= target_bytes, at_most)

    def _of(self, peak: Peak) -> int:
        if self.metric is Metric.RESIDENT:
            training = peak.training_bytes + self.kernels_bytes
            return self.process_bytes + max(peak.setup_bytes, training)
        # The larger workspaces: which card it is decides about tens of MiB.
        workspace = workspace_bytes(HOPPER)
        if self.metric is Metric.ALLOCATED:
            return peak.allocated_bytes + workspace
        return peak.reserved_bytes + workspace + (CONTEXT_BYTES if self.metric is Metric.DEVICE else 0)


def forecast(occasion: Occasion) -> Forecast:
    """Predict the peaks of a probe's trials.

    Raises:
        NoEstimate: they can't be, or it would take too long.
    """
    run = occasion.run
    subject = subject_of(run, packed=occasion.packed)
    result = recorded(subject, occasion.server, timeout_s=occasion.timeout_s, keep=run.path / "probe" / KEPT)
    if occasion.metric is not Metric.RESIDENT:
        return CurveForecast(result, occasion.metric)
    return CurveForecast(
        result,
        occasion.metric,
        result.resident_bytes + occasion.held_bytes + _SETUP_BYTES,
        KERNELS_BYTES.get(run.dtype, KERNELS_BYTES["fp32"]),
    )
