"""
What is open on an event loop is closed with it, for users who never call ``aclose``.

Knows asyncio only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable


class LoopEnd:
    """
    Calls `aclose` when the loop that `watch` was called on is shut down, or when this object is dropped.

    ``asyncio.run`` closes every asynchronous generator that was begun on its loop before it closes the loop; this
    holds one whose end is `aclose`.

    Args:
        aclose: Must not refer to whoever holds this object, or that is never dropped.
    """

    def __init__(self, aclose: Callable[[], Awaitable[object]]) -> None:
        self._generator = _until_closed(aclose)
        self._is_watching = False

    async def watch(self) -> None:
        """Begin; calling it again does nothing."""
        if not self._is_watching:
            self._is_watching = True
            await anext(self._generator)

    async def aclose(self) -> None:
        """Call `aclose` now, if it has been watched for and not been called yet."""
        await self._generator.aclose()


async def _until_closed(aclose: Callable[[], Awaitable[object]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await aclose()
