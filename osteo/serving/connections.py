"""Connections of the page: nobody may hold one without using it, and no client may have them all."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
MAX_OF_CLIENT = MAX_CONNECTIONS // 4  # of one address
PATIENCE = 10.0  # seconds for the head of a request, from the start or from the last answer; and for taking an answer


class Connection(H11Protocol):
    """A connection that is cut off where its client is slow, or has too many of them.

    How long a body may take is `server.body_of`'s business.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Accepts a connection, or closes it where this client, or all together, have too many."""
        super().connection_made(transport)
        of_client = sum(isinstance(other, Connection) and other.address == self.address for other in self.connections)
        if of_client > MAX_OF_CLIENT or len(self.connections) > MAX_CONNECTIONS:
            self.connections.discard(self)  # at once, since others may arrive before this one has ended
            transport.abort()
        else:
            self._wait()

    @property
    def address(self) -> str:
        """Of the client, without its port."""
        return self.client[0] if self.client else ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, at its end."""
        self._go_on()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Takes what has arrived; the head of a request has when there is a new cycle."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._go_on()

    def on_response_complete(self) -> None:
        """The next request may come, and may be here already."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not take the answer as fast as it is given."""
        self._wait()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._go_on()
        super().resume_writing()

    def _wait(self) -> None:
        self._go_on()
        self._deadline = self.loop.call_later(PATIENCE, self.transport.abort)

    def _go_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
