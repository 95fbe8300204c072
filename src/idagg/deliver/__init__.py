"""Ways out: RabbitMQ, the log file, and callbacks behind their guard."""
