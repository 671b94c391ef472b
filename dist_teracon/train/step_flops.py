"""How much of a GPU's arithmetic a step uses: the model's operations over what the device could do in that time (MFU).

Counted are the multiplications and additions of the backbone's matrices at every position that has to be computed, and of the heads over
all labels that a loss reads (or of a Gram matrix in their place); a backward pass counts twice a forward one. What is computed again
(logits in chunks) does not count.
"""

from __future__ import annotations

import torch

from dist_teracon.continual.method import Method
from dist_teracon.data.batches import PackedBatch
from dist_teracon.models.backbone import Backbone
from dist_teracon.runtime import Runtime

# Dense peak in TFLOP/s by a part of the device's name: in bf16 on tensor cores, in fp32 without them. From the vendor's data sheets.
_PEAKS = {
    "H200": (989.0, 67.0), "H100 PCIe": (756.0, 51.0), "H100": (989.0, 67.0), "GH200": (989.0, 67.0), "A100": (312.0, 19.5),
    "A800": (312.0, 19.5), "L40S": (362.0, 91.6), "L4": (121.0, 30.3), "A10G": (70.0, 31.2), "A10": (125.0, 31.2),
}  # fmt: skip
_FORWARD_AND_BACKWARD = 3


def peak_flops(device: str, precision: str) -> float | None:
    """Return the operations a second that a device can do, by its name; None for one that is not known."""
    known = next((peak for name, peak in _PEAKS.items() if name in device), None)
    return None if known is None else 1e12 * known[0 if precision == "bf16" else 1]


def step_flops(method: Method, batch: PackedBatch) -> float:
    """Return the operations of a step on a batch, forward and backward."""
    forward = 0.0
    for part in method.module().modules():
        if isinstance(part, Backbone):
            forward += part.flops(batch.sequences, positions=batch.positions)
    for examples in batch.examples:
        labels, width = method.head(examples.task).weight.shape
        negatives = method.negatives.get(examples.task)
        forward += 2.0 * examples.labels.shape[0] * width * (labels if negatives is None else 1 + negatives.count)
    for retained in batch.retention:
        width = method.head(retained.task).weight.shape[1]
        forward += 2.0 * retained.targets.shape[0] * width * method.replayed_outputs(retained.task)
    return _FORWARD_AND_BACKWARD * forward


class StepFlops:
    """The share of the device's peak that steps reach.

    Args:
        method: What is trained.
        runtime: Where.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, method: Method, runtime: Runtime, precision: str) -> None:
        self._method, self._peak = method, None
        if runtime.device.type == "cuda":
            self._peak = peak_flops(torch.cuda.get_device_name(runtime.device), precision)

    def share_of_peak(self, batch: PackedBatch, seconds: float) -> float | None:
        """Return the share for a step of so many seconds, by this rank's share of its batch; None on a CPU or a GPU that is not known."""
        if self._peak is None or not seconds:
            return None
        return step_flops(self._method, batch) / (seconds * self._peak)
