"""An event loop in a thread of its own, for callers that are not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class LoopThread:
    """Runs coroutines; ends with the process, or by `close`."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True, name=name)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it takes work."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Return the future result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of a coroutine."""
        return self.submit(work).result()

    def close(self) -> None:
        """End the thread; what is not done is cancelled."""
        if self.running:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            # Closing the runner cancels what is left, and closes the loop.
            runner.get_loop().run_forever()
