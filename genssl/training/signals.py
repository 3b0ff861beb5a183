"""The clock, the stop signals and the memory of a process that trains."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import Self

import psutil
import torch

from genssl.environment import launched_world_size
from genssl.errors import INTERRUPTED, TERMINATED

PATIENCE = 1.0  # seconds in which a second signal is the same key press


class Clock:
    """Counts seconds, steps and images since training was started or resumed."""

    def __init__(self) -> None:
        self.steps = 0
        self._start = self._window = time.perf_counter()
        self._marks: dict[str, float] = {}
        self._images = 0
        self._rate = 1.0

    def since_start(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def mark(self, event: str) -> None:
        """Remember that `event` has just happened."""
        self._marks[event] = time.perf_counter()

    def since(self, event: str) -> float:
        """Seconds since the last `mark(event)`, or since the start."""
        return time.perf_counter() - self._marks.get(event, self._start)

    def add_step(self, images: int) -> None:
        """Count a step on this many images."""
        self.steps += 1
        self._images += images

    def restart_window(self) -> None:
        """Measure the speed from here on; until there is something to measure, it is that of before."""
        self.images_per_second()
        self._window, self._images = time.perf_counter(), 0

    def images_per_second(self) -> float:
        """The speed of training since the last `restart_window`, time for pictures left out."""
        if self._images:
            self._rate = self._images / max(1e-9, time.perf_counter() - self._window)
        return self._rate


class StopSignals:
    """Turns a Ctrl-C or terminate signal into a request to save and stop; a second one is obeyed.

    Signals can be caught in the main thread alone; elsewhere this does nothing.
    """

    code: int | None = None  # exit code to stop with
    _received = 0.0  # seconds on the monotonic clock

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and self._before and launched_world_size() > 1:
            # After an error in one of several processes torchrun sends SIGTERM to the others, which end by
            # themselves when they notice: their message is the error's, not that of a stop
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.code is not None and time.monotonic() - self._received < PATIENCE:
            return
        if self.code is not None:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        self._received = time.monotonic()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: that of the CUDA device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows, which keeps the peak elsewhere
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def format_seconds(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
