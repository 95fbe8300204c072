"""The service that most people would write: FastAPI on uvicorn, and one blocking SADD for each request.

Its argument is the number of processes.
"""
# FastAPI is installed with the bench, not with idagg's own tools.
# mypy: ignore-errors

import os
import sys
import time

import redis
import uvicorn
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


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_service:app",
        port=int(os.environ["PORT"]),
        workers=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
    )
