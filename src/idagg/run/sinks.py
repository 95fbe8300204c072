"""The broker that the settings describe."""

from __future__ import annotations

from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.settings import Settings


def broker(settings: Settings) -> Broker | None:
    """A Broker for RabbitMQ; None if the settings name none."""
    if settings.amqp_url is None:
        return None
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
