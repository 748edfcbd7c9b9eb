"""counterseal inside an application of your own: `uvicorn --app-dir examples own_application:app`.

The application keeps profiles in the cache and the page of prices as a whole response, limits how often it may be
asked, shows people who they are logged in as, and has counterseal's own routes below /counterseal.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException

from counterseal import Counterseal
from counterseal.web import (
    RateLimitMiddleware,
    ResponseCache,
    Session,
    SessionMiddleware,
    create_app,
    current_session,
    limited,
    response_kind,
)

PAGES = response_kind("page", timedelta(minutes=1), stale_if_error=timedelta(hours=1))

seal = Counterseal.open(kinds=[PAGES])
pages = ResponseCache(seal, kind=PAGES)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with seal, seal.worker():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/counterseal", create_app(seal))
app.add_middleware(RateLimitMiddleware, seal=seal, routes={"/profiles": "api"})
app.add_middleware(SessionMiddleware, seal=seal)
public = APIRouter(route_class=pages.route_class)


@app.put("/profiles/{user_id}")
async def put_profile(user_id: str, name: str) -> None:
    await seal.cache.user_profiles.set(user_id, {"name": name})


@app.get("/profiles/{user_id}")
async def get_profile(user_id: str) -> dict[str, object]:
    profile = await seal.cache.user_profiles.get(user_id)
    if profile is None:
        raise HTTPException(404)
    return {**profile}


@app.post("/profiles/{user_id}/mail", dependencies=[Depends(limited("email"))])
async def mail_profile(user_id: str) -> dict[str, str]:
    made = await seal.jobs.enqueue_json("email", {"to": user_id})
    return {"job": made.id}


@app.get("/me")
async def get_me(session: Annotated[Session, Depends(current_session)]) -> dict[str, str]:
    return {"user": session.user_id, "device": session.device}


@public.get("/prices")
async def get_prices() -> dict[str, int]:
    return {"envelope": 2, "seal": 5}  # asked of the database once a minute


app.include_router(public)
