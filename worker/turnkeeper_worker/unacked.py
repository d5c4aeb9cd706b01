"""Which messages a worker enters in Redis as taken, so that Redis brings them back: those that nobody else would.

Kombu enters each one, and takes it out again when it is acked: two transactions, an eighth of a short turn's cost.
A ring for a turn that is due is acked a moment after it was taken. Where its worker dies in that moment the rescue
loop rings again, long before Redis would; so it is kept in memory alone, and given back where a worker ends in
order. A countdown is kept for longer, and a submitted turn is nowhere else: both are entered.
"""

from typing import Any

from kombu.connection import Connection
from kombu.message import Message
from kombu.transport import redis, virtual

from turnkeeper.doorbell import RUN_TURN


class SparingQoS(redis.QoS):
    """Keeps count of the messages that were taken and not acked."""

    def append(self, message: Message, delivery_tag: str) -> None:
        """Note that a message was taken."""
        if _is_light(message):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]  # kombu is untyped

    def ack(self, delivery_tag: str) -> None:
        """Note that a message was acked."""
        if _is_light(self._delivered.get(delivery_tag)):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu calls it so
        """Note that a message is not wanted here; *requeue* gives it to others."""
        message = self._delivered.get(delivery_tag)
        if not _is_light(message):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
            return
        if requeue:
            self._give_back(message)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Give back what was taken and not acked."""
        for message in filter(_is_light, list(self._delivered.values())):
            self._give_back(message)
        super().restore_unacked(client)  # type: ignore[no-untyped-call]

    def _give_back(self, message: Any) -> None:
        info = message.delivery_info
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(  # noqa: SLF001 - as kombu's own restoring does
                message._raw,  # noqa: SLF001
                info["exchange"],
                info["routing_key"],
                client,
                leftmost=True,
            )


class SparingChannel(redis.Channel):
    """A channel of Redis that enters few messages."""

    QoS = SparingQoS


def spare(connection: Connection) -> None:
    """Let *connection*, which has opened no channel yet, enter few messages, where its broker is Redis."""
    if connection.transport.driver_type == "redis":
        connection.transport.Channel = SparingChannel


def _is_light(message: Any) -> bool:
    """Tell whether the rescue loop would ring for it: a turn that is due now."""
    return message is not None and message.headers.get("task") == RUN_TURN and message.headers.get("eta") is None
