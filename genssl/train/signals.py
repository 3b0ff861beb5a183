"""One sitting of a run: its clock, its stop signals, and what the process uses."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import Self

import psutil
import torch

from genssl.errors import INTERRUPTED, TERMINATED

PATIENCE = 1.0  # seconds


class Clock:
    """Counts seconds, steps and images of this sitting."""

    def __init__(self) -> None:
        self.steps = 0
        self._started = self._read = self._saved = self._drawn = time.perf_counter()
        self._window = self._started
        self._images = 0
        self._rate = 1.0

    def total(self) -> float:
        """Seconds since the sitting began."""
        return time.perf_counter() - self._started

    def count(self, images: int) -> None:
        """A step on so many images was taken."""
        self.steps += 1
        self._images += images

    def images_per_second(self) -> float:
        """The speed of training since the last `open_window`, time for pictures left out."""
        if self._images:
            self._rate = self._images / max(1e-9, time.perf_counter() - self._window)
        return self._rate

    def open_window(self) -> None:
        """Measure speed from now on."""
        self._window, self._images = time.perf_counter(), 0

    def since_read(self) -> float:
        """Seconds since the losses were last read."""
        return time.perf_counter() - self._read

    def since_save(self) -> float:
        """Seconds since the state was last saved."""
        return time.perf_counter() - self._saved

    def since_drawn(self) -> float:
        """Seconds since the curves were last drawn."""
        return time.perf_counter() - self._drawn

    def mark_drawn(self) -> None:
        """The curves were just drawn."""
        self._drawn = time.perf_counter()

    def mark_read(self) -> None:
        """The losses were just read."""
        self._read = time.perf_counter()

    def mark_saved(self) -> None:
        """The state was just saved."""
        self._saved = time.perf_counter()


class StopSignals:
    """Turns a Ctrl-C or terminate signal into a request to save and stop; a second one is obeyed.

    Signals can be caught in the main thread alone; elsewhere this does nothing.
    """

    code: int | None = None  # the exit code asked for
    _asked = 0.0  # when

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.code is not None and time.monotonic() - self._asked < PATIENCE:
            return  # the same key press, or one before the state could be saved
        if self.code is not None:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        self._asked = time.monotonic()


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: of the CUDA device, else of the process."""
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
