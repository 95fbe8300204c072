"""Delivery: RabbitMQ, the log file, and callbacks with their guard."""
