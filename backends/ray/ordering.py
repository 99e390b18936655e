"""Output that comes by two ways, put into order."""

from __future__ import annotations

from collections import OrderedDict

from pxcompat.protocol import EventSink, OutputEvent, Reply

__all__ = ["Outputs"]

#: requests whose output is being put into order
MOST = 10_000


class _Output:
    """The output of one request."""

    def __init__(self) -> None:
        self.next = 0
        self.early: dict[int, OutputEvent] = {}
        #: how many there are, once that is known
        self.total: int | None = None


class Outputs:
    """The output of requests, each event of which goes on when those before it have."""

    def __init__(self) -> None:
        self._outputs: OrderedDict[str, _Output] = OrderedDict()

    def take(self, sink: EventSink, msg_id: str, event: OutputEvent) -> None:
        """An event, and with it those that have waited for it."""
        if event.seq < 0:  # of a thread, or a widget, when its request has ended
            sink.output(msg_id, event)
            return
        state = self._outputs.setdefault(msg_id, _Output())
        state.early[event.seq] = event
        while state.next in state.early:
            sink.output(msg_id, state.early.pop(state.next))
            state.next += 1
        if state.next == state.total:
            del self._outputs[msg_id]
        elif len(self._outputs) > MOST:  # of engines that ended before their requests
            self._outputs.popitem(last=False)

    def complete(self, reply: Reply) -> None:
        """Note how much output a request has."""
        state = self._outputs.get(reply.msg_id)
        if state is not None:
            state.total = reply.outputs
            if state.next >= state.total:
                del self._outputs[reply.msg_id]
