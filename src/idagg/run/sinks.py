"""The broker that the settings describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idagg.in_force import InForce

if TYPE_CHECKING:
    from idagg.deliver.broker import Broker


def broker(settings: InForce) -> Broker | None:
    """A Broker for RabbitMQ; None if the settings name none."""
    if settings.amqp_url is None:
        return None
    # Imported late: without RabbitMQ, its library would take 2 MB of each worker.
    from idagg.deliver.amqp_route import Route
    from idagg.deliver.broker import Broker

    return Broker(
        settings.amqp_url,
        Route(
            settings.amqp_queue,
            settings.amqp_queue_type,
            settings.amqp_exchange or "",
            settings.amqp_routing_key or "",
        ),
        body=settings.amqp_body,
        namespace=settings.namespace,
        publish_timeout_s=settings.amqp_publish_timeout,
        connect_timeout_s=settings.amqp_connect_timeout,
    )
