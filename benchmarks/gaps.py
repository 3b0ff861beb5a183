"""How long a GPU waits for the host between its kernels."""

from collections.abc import Callable, Sequence

import torch

GAP = 10.0  # us; shorter ones are between any two kernels


def kernels(action: Callable[[], object]) -> list[tuple[float, float]]:
    """When each kernel and copy on the device began and ended, in us, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        action()
        torch.cuda.synchronize()
    on_device = [event for event in profiled.events() if event.device_type.name == "CUDA"]
    return [(event.time_range.start, event.time_range.end) for event in on_device]


def gaps(spans: Sequence[tuple[float, float]], steps: int) -> dict[str, float]:
    """How long the device waits for the host, from the spans (us) of what it carries out in some steps.

    Spans may overlap, on several streams. Gaps below GAP are those between any two kernels.
    """
    if not spans:
        return {"device_busy_share": 0.0, "gaps_per_step": 0.0, "longest_gap_us": 0.0}
    ordered = sorted(spans)
    busy, waits, end = 0.0, [0.0], ordered[0][0]
    for start, stop in ordered:
        waits.append(start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {
        "device_busy_share": busy / (end - ordered[0][0]),
        "gaps_per_step": sum(wait > GAP for wait in waits) / steps,
        "longest_gap_us": max(waits),
    }
