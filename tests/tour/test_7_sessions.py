"""Tour 7: who is logged in, on which device.

A session is one log-in on one device. The database is the authority and Redis answers; one that was ended stays ended.
"""

from datetime import timedelta

from counterseal import Counterseal
from counterseal.sessions import Context, Created

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/19.0 Mobile/15E148 Safari/604.1"
)


async def log_in(seal: Counterseal, user_agent: str = FIREFOX) -> Created:
    # The user is added with the first session. Whoever knows an application's passwords calls this.
    return await seal.sessions.create(
        user_id="ada", email="ada@example.com", user_agent=user_agent, ip="203.0.113.7"
    )


async def test_create_and_get(seal: Counterseal) -> None:
    made = await log_in(seal)

    session = await seal.sessions.get(made.session_id)  # one round trip

    assert session is not None
    assert (session.user_id, session.device, session.amr) == ("ada", "Firefox on Linux", ("pwd",))
    assert session.expires_at - session.created_at == timedelta(days=7)
    assert await seal.sessions.get("ada.nobody-made-it") is None


async def test_an_id_names_a_session_and_its_access_token_proves_it(seal: Counterseal) -> None:
    made = await log_in(seal)

    assert await seal.sessions.authenticate(made.session_id) is None
    session = await seal.sessions.authenticate(made.access_token)

    assert session is not None
    assert session.session_id == made.session_id
    assert made.access_token not in repr(made)


async def test_devices_are_listed_and_ended(seal: Counterseal) -> None:
    laptop, phone = await log_in(seal), await log_in(seal, IPHONE)

    devices = await seal.sessions.list("ada", current=laptop.session_id)
    assert {one.device: one.current for one in devices} == {
        "Firefox on Linux": True,
        "Safari on iPhone": False,
    }

    assert (await seal.sessions.revoke_others(laptop.session_id)).ended == 1
    assert await seal.sessions.get(phone.session_id) is None
    assert await seal.sessions.get(laptop.session_id) is not None

    assert await seal.sessions.revoke(laptop.session_id)
    assert await seal.sessions.list("ada") == ()


async def test_a_refresh_token_is_good_once_and_a_stolen_one_ends_the_session(seal: Counterseal) -> None:
    made = await log_in(seal)

    first = await seal.sessions.rotate(made.refresh_token)
    again = await seal.sessions.rotate(made.refresh_token)  # within 10 s: the answer may have been lost
    assert first is not None
    assert again is not None
    assert again.tokens.refresh_token == first.tokens.refresh_token

    assert await seal.sessions.rotate(first.tokens.refresh_token) is not None
    assert await seal.sessions.rotate(made.refresh_token) is None  # two behind: somebody else has it
    assert await seal.sessions.get(made.session_id) is None


async def test_a_second_factor_is_for_one_request_and_for_once(seal: Counterseal) -> None:
    sessions, session_id = seal.sessions, (await log_in(seal)).session_id
    assert await sessions.require_step_up(session_id, Context.SIGNING, "request-1") is None

    await sessions.set_totp_verified(session_id, Context.SIGNING, "request-1")

    assert await sessions.require_step_up(session_id, Context.SIGNING, "request-2") is None
    assert await sessions.require_step_up(session_id, Context.SIGNING, "request-1") is not None
    assert await sessions.require_step_up(session_id, Context.SIGNING, "request-1") is None  # it is used up
