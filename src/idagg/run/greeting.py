"""What a person at the terminal reads once idagg runs. Pure."""

from __future__ import annotations

from idagg import __version__
from idagg.deliver.logfile import shown
from idagg.settings import Settings
from idagg.store.address import shown as shown_url


def greeting(settings: Settings, *, public: str, admin: str, embedded: str | None) -> str:
    """``public`` and ``admin`` are addresses; ``embedded`` is the embedded store."""
    log_file = shown(settings.log_file)
    if settings.amqp_url:
        queue = f"queue {settings.amqp_queue}"
        way = f"exchange {settings.amqp_exchange}" if settings.amqp_exchange else queue
        sink = f"to RabbitMQ's {way}, or to {log_file} while RabbitMQ is away"
    else:
        sink = f"to {log_file} (for RabbitMQ: --amqp-url)"
    if embedded:
        store = f"embedded {embedded}; for one VM (more: --redis-url)"
    else:
        store = f"Redis at {shown_url(settings.redis_url or '')}"
    return "\n".join(
        (
            f"idagg {__version__} counts unique ids in windows of {settings.window} s",
            f"  try      curl 'http://{public}/api/verve/accept?id=123'",
            f"  counts   {sink}",
            f"  store    {store}",
            f"  workers  {settings.workers}",
            f"  status   http://{admin}/",
            f"  admin    http://{admin}/metrics",
        )
    )
