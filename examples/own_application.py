"""counterseal inside an application of your own: `uvicorn --app-dir examples own_application:app`.

The application keeps a profile in the cache, and has counterseal's health and metrics below /counterseal.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from counterseal import Counterseal
from counterseal.web import create_app

seal = Counterseal.open()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with seal, seal.worker():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/counterseal", create_app(seal))


@app.put("/profiles/{user_id}")
async def put_profile(user_id: str, name: str) -> None:
    await seal.cache.user_profiles.set(user_id, {"name": name})


@app.get("/profiles/{user_id}")
async def get_profile(user_id: str) -> dict[str, object]:
    profile = await seal.cache.user_profiles.get(user_id)
    if profile is None:
        raise HTTPException(404)
    return {**profile}
