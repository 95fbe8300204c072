"""The service that most people would write: FastAPI, and one blocking SADD for each request."""
# FastAPI is installed beside the bench, not with idagg's own dependencies.
# mypy: ignore-errors

import os
import time

import redis
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()
store = redis.Redis(unix_socket_path=os.environ["REDIS_SOCKET"])


@app.get("/api/verve/accept", response_class=PlainTextResponse)
async def accept(id: int, endpoint: str | None = None):  # noqa: A002  the caller's name for it
    minute = int(time.time()) // 60
    store.sadd(f"ids:{minute}", id)
    if endpoint:
        store.sadd(f"endpoints:{minute}", endpoint)
    return "ok"
