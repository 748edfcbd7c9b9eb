"""The Redis REST server over real HTTP, before a real Valkey: request forms, errors, limits, isolation of requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from counterseal.store.link import LinkOptions
from counterseal.upstash.app import RestLimits
from support.client import Client
from support.gateway import Gateway, gateway_for, gateway_on
from support.servers import Server
from support.stores import native_store
from support.waiting import eventually

pytestmark = pytest.mark.leaves_keys("the keys are the clients' own, as on the service")

UNAVAILABLE = "ERR Command is not available: "
HELP = "See https://upstash.com/docs/redis/overall/rediscompatibility for details"
WRONG = (
    "WRONGPASS invalid or missing auth token. "
    "See https://docs.upstash.com/redis/troubleshooting/http_unauthorized for details."
)


@pytest.fixture
async def gateway(valkey: Server) -> AsyncIterator[Gateway]:
    async with gateway_on(valkey) as gateway:
        yield gateway


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client() as client:
        yield client


async def post(http: httpx.AsyncClient, url: str, value: Any, **headers: str) -> Any:
    """The decoded answer to a JSON body."""
    return (await http.post(url, content=json.dumps(value), headers=headers)).json()


async def command(http: httpx.AsyncClient, gateway: Gateway, *arguments: Any) -> Any:
    """The result of one command."""
    answer = await post(http, gateway.url, arguments)
    assert answer.keys() == {"result"}, answer
    return answer["result"]


# -- forms -----------------------------------------------------------------------------------------------------------


async def test_a_command_in_the_body_is_run_with_and_without_a_trailing_slash(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    for url in (gateway.url, gateway.url + "/", gateway.url + "//"):
        answer = await http.post(url, content=b'["ECHO","x"]')
        assert (answer.status_code, answer.json()) == (200, {"result": "x"})
        assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_the_content_type_of_a_request_does_not_matter(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json", "nonsense"):
        assert await post(http, gateway.url, ["PING"], **{"Content-Type": kind}) == {"result": "PONG"}


async def test_a_path_is_a_command_by_get_post_and_put(gateway: Gateway, http: httpx.AsyncClient) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = await http.request(method, f"{gateway.url}/set/{method}/v/EX/100/")
        assert answer.json() == {"result": "OK"}
        assert (await http.request(method, f"{gateway.url}/ttl/{method}")).json() == {"result": 100}


async def test_a_body_is_one_raw_argument_and_the_query_follows_it(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server
) -> None:
    answer = await http.post(f"{gateway.url}/set/a%2Fb?EX=100&NX", content=b"\xff\x00 [1]")
    assert answer.json() == {"result": "OK"}
    assert valkey.execute("GET", "a/b") == b"\xff\x00 [1]"
    assert valkey.execute("TTL", "a/b") == 100
    assert (await http.put(f"{gateway.url}/append/a%2Fb", content=b"\xfe")).json() == {"result": 7}


async def test_a_path_is_bytes(gateway: Gateway, http: httpx.AsyncClient, valkey: Server) -> None:
    url = httpx.URL(gateway.url).copy_with(raw_path=b"/redis/mset/%00%FF/+//%2B?x+y=1%26")
    assert (await http.get(url)).json() == {"result": "OK"}
    assert valkey.execute("MGET", b"\x00\xff", "", "x y") == [b"+", b"+", b"1&"]


async def test_a_body_on_get_is_ignored(gateway: Gateway, http: httpx.AsyncClient) -> None:
    answer = await http.request("GET", f"{gateway.url}/echo/x", content=b"ignored")
    assert answer.json() == {"result": "x"}
    assert (await http.request("GET", gateway.url, content=b'["PING"]')).json() == {"error": "EOF"}
    assert (await http.get(f"{gateway.url}/pipeline")).json() == {"error": "EOF"}


async def test_a_pipeline_answers_each_command_in_its_place(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    rows = [
        ["INCR", "n"],
        ["nope"],
        ["LPUSH", "n", "x"],
        [None],
        ["get", "n"],
        ["BLPOP", "q", 0],
        ["SELECT", 0],
    ]
    for path in ("/pipeline", "//pipeline", "/PIPELINE/"):
        answers = await post(http, gateway.url + path, [["DEL", "n"], *rows])
        assert answers[1] == {"result": 1}
        assert answers[2]["error"].startswith(UNAVAILABLE)
        assert answers[3]["error"].startswith("WRONGTYPE ")
        assert answers[4] == {"error": "ERR null args are not supported"}
        assert answers[5:] == [{"result": "1"}, {"result": None}, {"result": "OK"}]


async def test_a_thousand_and_one_commands_are_a_pipeline_like_any_other(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    answers = await post(http, f"{gateway.url}/pipeline", [["INCR", "n"]] * 1001)
    assert answers == [{"result": number} for number in range(1, 1002)]


async def test_head_is_get_without_the_body(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server
) -> None:
    answer = await http.head(f"{gateway.url}/set/k/v")
    assert (answer.status_code, answer.content) == (200, b"")
    assert valkey.execute("GET", "k") == b"v"
    assert (await http.head(gateway.url)).status_code == 200
    assert (await http.head(f"{gateway.url}/nope")).status_code == 400
    async with httpx.AsyncClient() as stranger:
        assert (await stranger.head(gateway.url)).status_code == 401


async def test_other_methods_are_refused_with_what_is_allowed(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    for method in ("DELETE", "PATCH", "TRACE"):
        answer = await http.request(method, f"{gateway.url}/get/k")
        assert (answer.status_code, answer.content) == (405, b"")
        assert answer.headers["allow"] == "GET, HEAD, POST, PUT, OPTIONS"


async def test_a_browser_is_told_that_it_may(gateway: Gateway, http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient() as browser:
        asked = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, upstash-encoding",
        }
        answer = await browser.options(f"{gateway.url}/pipeline", headers=asked)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"] == "authorization, upstash-encoding"
    for path in ("/ping", "/nope"):
        reply = await http.get(gateway.url + path, headers={"Origin": "https://app.example"})
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        assert reply.headers["access-control-expose-headers"] == "Upstash-Sync-Token"
    assert "access-control-allow-origin" not in (await http.get(f"{gateway.url}/ping")).headers


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_only_the_token_opens_whatever_way_it_is_sent(gateway: Gateway) -> None:
    async with httpx.AsyncClient() as http:

        async def status(authorization: str | None = None, query: str = "", path: str = "/ping") -> int:
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = await http.get(f"{gateway.url}{path}{query}", headers=headers)
            if answer.status_code == 401:
                assert answer.json() == {"error": WRONG}
            return answer.status_code

        token = gateway.token
        for accepted in (f"Bearer {token}", f"bearer {token}", f"BEARER  {token}", token):
            assert await status(accepted) == 200
        for refused in (None, "", "Bearer", f"Basic {token}", f"Bearer {token}x", f"Bearer {token[:-1]}"):
            assert await status(refused) == 401
        assert await status(query=f"?_token={token}") == 200
        assert await status(f"Bearer {token}", query="?_token=wrong") == 401, (
            "the query goes before the header"
        )
        assert await status("Bearer wrong", query=f"?_token={token}") == 200
        assert await status(path="/subscribe/x") == 401


async def test_the_token_in_the_query_is_no_argument(gateway: Gateway, valkey: Server) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{gateway.url}/set/k?_token={gateway.token}&EX=100", content=b"v")
        assert answer.json() == {"result": "OK"}
        assert (await http.get(f"{gateway.url}/echo/x/?_token={gateway.token}")).json() == {"result": "x"}
    assert valkey.execute("TTL", "k") == 100


# -- replies ---------------------------------------------------------------------------------------------------------

VALUES = [
    "",
    "OK",
    "null",
    "1e3",
    "007",
    "12345678901234567890",
    str(2**63),
    "a\x00b",
    "😀",
    '"quoted"',
    "[]",
    "\r\n$-1",
]


@pytest.mark.parametrize("value", VALUES)
async def test_a_value_comes_back_as_it_was(gateway: Gateway, http: httpx.AsyncClient, value: str) -> None:
    assert await command(http, gateway, "SET", "k", value) == "OK"
    assert await command(http, gateway, "GET", "k") == value
    encoded = await post(http, gateway.url, ["GET", "k"], **{"Upstash-Encoding": "base64"})
    assert encoded["result"] == "OK" if value == "OK" else b64decode(encoded["result"]).decode() == value


async def test_numbers_are_stored_as_they_were_written(gateway: Gateway, http: httpx.AsyncClient) -> None:
    await http.post(gateway.url, content=b'["RPUSH","l",1.10,1E400,12345678901234567890123,true,-0]')
    assert await command(http, gateway, "LRANGE", "l", 0, -1) == [
        "1.10", "1E400", "12345678901234567890123", "true", "-0",
    ]  # fmt: skip


async def test_large_integers_are_json_numbers(gateway: Gateway, http: httpx.AsyncClient) -> None:
    await command(http, gateway, "SET", "n", 2**63 - 1)
    answer = await http.post(gateway.url, content=b'["INCRBY","n",0]')
    assert answer.text == '{"result":9223372036854775807}'


async def test_base64_reaches_every_depth_and_spares_ok_at_the_top(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    script = "return {'OK', {'x', 7, false}, redis.status_reply('OK')}"
    rows = [
        ["SET", "k", "v"],
        ["PING"],
        ["TYPE", "k"],
        ["EVAL", script, 0],
        ["GET", "none"],
        ["DBSIZE"],
        ["nope"],
    ]
    answers = await post(http, f"{gateway.url}/pipeline", rows, **{"Upstash-Encoding": "base64"})

    def b64(text: str) -> str:
        return b64encode(text.encode()).decode()

    assert [answer.get("result", "error") for answer in answers] == [
        "OK", b64("PONG"), b64("string"), [b64("OK"), [b64("x"), 7, None], b64("OK")], None, 1, "error",
    ]  # fmt: skip
    assert answers[-1]["error"].startswith(UNAVAILABLE)


async def test_bytes_that_are_not_text_never_break_an_answer(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server
) -> None:
    valkey.execute("SET", "k", b"\xff\xfe")
    assert await command(http, gateway, "GET", "k") == "\ufffd\ufffd"
    answer = await post(http, gateway.url, ["EVAL", "return redis.error_reply(ARGV[1])", 0, "BAD x"])
    assert answer == {"error": "BAD x"}
    valkey.execute("SET", "script", b"return redis.error_reply('BAD \xff')")
    binary = await http.post(f"{gateway.url}/eval/return%20redis.error_reply('BAD%20%FF')/0")
    assert (binary.status_code, binary.json()) == (400, {"error": "BAD \ufffd"})


async def test_a_reply_nested_beyond_measure_is_an_error_and_the_connection_comes_back(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    script = "local t = {} for i = 1, ARGV[1] do t = {t} end return t"
    assert await command(http, gateway, "EVAL", script, 0, 3) == [[[[]]]]
    answer = await http.post(gateway.url, json=["EVAL", script, 0, 1000])
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "ERR the reply is nested too deeply for JSON"},
    )
    answer = await http.post(gateway.url, json=["EVAL", script, 0, 5000])
    assert answer.status_code == 503

    async def works() -> bool:
        return (await http.get(f"{gateway.url}/ping")).json() == {"result": "PONG"}

    await eventually(works)


async def test_shapes_are_those_of_resp2(gateway: Gateway, http: httpx.AsyncClient) -> None:
    await command(http, gateway, "HSET", "h", "a", 1)
    await command(http, gateway, "ZADD", "z", 1.5, "m")
    assert await command(http, gateway, "HGETALL", "h") == ["a", "1"]
    assert await command(http, gateway, "ZRANGE", "z", 0, -1, "WITHSCORES") == ["m", "1.5"]
    assert await command(http, gateway, "ZSCORE", "z", "m") == "1.5"
    assert await command(http, gateway, "CONFIG", "GET", "notify-keyspace-events") == [
        "notify-keyspace-events",
        "",
    ]
    assert await command(http, gateway, "XREAD", "STREAMS", "none", "0") is None


async def test_every_answer_that_succeeds_has_a_sync_token_of_its_own(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    requests = [
        *(http.post(gateway.url, content=b'["SET","k","v"]') for _ in range(3)),
        http.post(f"{gateway.url}/pipeline", content=b'[["PING"]]'),
        http.post(f"{gateway.url}/multi-exec", content=b'[["PING"]]'),
        http.post(gateway.url, content=b'["PING"]', headers={"Upstash-Sync-Token": "my-new-sync-token"}),
        http.post(gateway.url, content=b'["PING"]', headers={"Upstash-Sync-Token": ""}),
    ]
    answers = await asyncio.gather(*requests)
    tokens = [answer.headers["upstash-sync-token"] for answer in answers]
    assert all(tokens)
    assert len(set(tokens)) == len(tokens)


async def test_other_formats_are_refused_by_name(gateway: Gateway, http: httpx.AsyncClient) -> None:
    async def asked(value: str, path: str = "", body: bytes = b'["PING"]') -> tuple[int, Any]:
        answer = await http.post(gateway.url + path, content=body, headers={"Upstash-Response-Format": value})
        return answer.status_code, answer.json()

    assert await asked("json") == (200, {"result": "PONG"})
    status, answer = await asked("resp2")
    assert status == 400
    assert "resp2 is not available" in answer["error"]
    assert (await asked("xml"))[0] == 400
    assert await asked("resp2", "/multi-exec", b'[["PING"]]') == (200, [{"result": "PONG"}])


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("", "", "EOF"),
        ("", "[]", "ERR empty command"),
        ("", "{}", "expected JSON array"),
        ("", '["GET"', "ERR failed to parse command"),
        ("/pipeline", "[]", "ERR empty pipeline request"),
        ("/pipeline", "[[]]", "ERR empty pipeline command"),
        ("/pipeline", "[", "ERR failed to parse pipeline request"),
        ("/multi-exec", "[]", "ERR empty pipeline request"),
        ("", '["EVALSHA","x",0]', "NOSCRIPT No matching script. Please use EVAL."),
        ("", '["GET"]', "ERR wrong number of arguments for 'get' command"),
        ("", '["MULTI"]', 'ERR Command "MULTI" is not allowed in REST or it has a special context path'),
        ("", '["SELECT",1]', "ERR DB index is out of range"),
        ("/psubscribe/x", "", "ERR /psubscribe is not available on this server"),
        ("/subscribe", "", "ERR wrong number of arguments for 'subscribe' command"),
        ("/pipeline/x", "[]", f"{UNAVAILABLE}'pipeline'. {HELP}"),
    ],
)  # fmt: skip
async def test_a_request_that_fails_is_400_with_its_reason_in_json(
    gateway: Gateway, http: httpx.AsyncClient, path: str, body: str, text: str
) -> None:
    answer = await http.post(gateway.url + path, content=body)
    assert (answer.status_code, answer.json()) == (400, {"error": text})
    assert answer.headers["content-type"].startswith("application/json")


async def test_what_the_backend_lacks_is_not_available(gateway: Gateway, http: httpx.AsyncClient) -> None:
    answer = await post(http, gateway.url, ["XDELEX", "k", "IDS", 1, "1-1"])
    assert answer["error"].startswith(f"{UNAVAILABLE}'XDELEX'")


async def test_a_script_that_writes_where_it_may_not_is_told_as_on_the_service(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    code = "#!lua name=l\nredis.register_function('w', function(k) return redis.call('SET', k[1], 1) end)"
    assert await command(http, gateway, "FUNCTION", "LOAD", "REPLACE", code) == "l"
    answer = await post(http, gateway.url, ["FCALL_RO", "w", 1, "k"])
    assert "commands are not allowed from read-only" in answer["error"]
    assert await command(http, gateway, "FUNCTION", "DELETE", "l") == "OK"


async def test_a_request_of_ten_megabytes_is_served_and_one_byte_more_is_not(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server
) -> None:
    limit = 10 * 2**20
    head, tail = b'["SET","k","', b'","EX",100]'
    exact = head + b"x" * (limit - len(head) - len(tail)) + tail
    assert (await http.post(gateway.url, content=exact)).json() == {"result": "OK"}
    valkey.execute("DEL", "k")
    for content in (exact + b" ", pieces(exact + b" ")):
        answer = await http.post(gateway.url, content=content)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(
            f"ERR max request size exceeded. Limit: {limit} bytes, Actual: {limit + 1} bytes. See https://"
        )
    assert valkey.execute("EXISTS", "k") == 0


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 2**18):
        yield body[start : start + 2**18]


async def test_a_request_that_is_too_large_is_refused_before_it_has_arrived(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
    writer.write(
        f"POST /redis HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
        "Content-Length: 99999999\r\n\r\n[".encode()
    )
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_a_body_that_stalls_is_408_and_ends_the_connection(valkey: Server) -> None:
    limits = RestLimits(body_stall=timedelta(milliseconds=50))
    async with gateway_on(valkey, limits=limits) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(
            f"POST /redis HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
            "Content-Length: 100\r\n\r\n[".encode()
        )
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'{"error":"ERR the request\'s body did not arrive in time"}' in answer


async def test_an_answer_over_the_limit_is_an_error_in_its_place(valkey: Server) -> None:
    valkey.execute("SET", "large", b"x" * 2000)
    async with (
        gateway_on(valkey, limits=RestLimits(response_bytes=1000)) as gateway,
        gateway.client() as http,
    ):
        too_large = {"error": "ERR max response size exceeded. Limit: 1000 bytes"}
        answer = await http.get(f"{gateway.url}/get/large")
        assert (answer.status_code, answer.json()) == (400, too_large)
        rows = [["ECHO", "a"], ["GET", "large"], ["ECHO", "b"]]
        assert await post(http, f"{gateway.url}/pipeline", rows) == [
            {"result": "a"},
            too_large,
            {"result": "b"},
        ]


# -- transactions ----------------------------------------------------------------------------------------------------


async def test_a_transaction_answers_each_command_and_a_failure_while_running_leaves_the_others(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    rows = [["SET", "k", "v"], ["INCR", "k"], ["blpop", "q", 0], ["SELECT", "0"], ["GET", "k"]]
    answers = await post(http, f"{gateway.url}/multi-exec", rows)
    assert answers[1]["error"].startswith("ERR value is not an integer")
    del answers[1]
    assert answers == [{"result": "OK"}, {"result": None}, {"result": "OK"}, {"result": "v"}]


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (["INCR"], "ERR wrong number of arguments for 'incr' command"),
        (["nope"], UNAVAILABLE),
        (["XDELEX", "k", "IDS", 1, "1-1"], UNAVAILABLE),
        (["GET", None], "ERR null args are not supported"),
        (["EXEC"], 'ERR Command "EXEC" is not allowed'),
        (["INFO"], "ERR Command 'INFO' can't be part of a transaction"),
    ],
)
async def test_a_command_that_is_refused_discards_the_transaction_with_its_cause(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server, row: list[Any], cause: str
) -> None:
    for rows in ([["SET", "k", "v"], row], [row, ["SET", "k", "v"]]):
        answer = await http.post(f"{gateway.url}/multi-exec", content=json.dumps(rows))
        assert answer.status_code == 400
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].startswith(cause)
        assert valkey.execute("EXISTS", "k") == 0


async def test_nobody_gets_between_the_commands_of_a_transaction(gateway: Gateway) -> None:
    async def one(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            rows = [["INCR", "n"], ["INCR", "n"], ["INCR", "n"]]
            first, second, third = await post(client, f"{gateway.url}/multi-exec", rows)
            assert (second["result"], third["result"]) == (first["result"] + 1, first["result"] + 2)
            assert (await client.get(f"{gateway.url}/incr/n")).json()["result"] > third["result"]

    async with gateway.client() as client:
        await asyncio.gather(*(one(client) for _ in range(50)))
        assert (await client.get(f"{gateway.url}/get/n")).json() == {"result": str(50 * 3 * 4)}


SMUGGLED = [
    ["EXEC"], ["DISCARD"], ["MULTI"], ["SUBSCRIBE", "c"], ["PSUBSCRIBE", "*"], ["SSUBSCRIBE", "c"], ["UNSUBSCRIBE"],
    ["PUNSUBSCRIBE"], ["SUNSUBSCRIBE"], ["CLIENT", "REPLY", "OFF"], ["CLIENT", "REPLY", "SKIP"],
    ["CLIENT", "TRACKING", "ON"], ["HELLO", "3"], ["SELECT", "1"], ["AUTH", "x"], ["MONITOR"], ["RESET"], ["QUIT"],
    ["SYNC"], ["PSYNC", "?", "-1"], ["SHUTDOWN"], ["WATCH", "k"], ["EXEC\x00"], [" EXEC"], ["EXEC\r\n"], ["eXeC"],
    ["GET\r\n*1\r\n$4\r\nEXEC\r\n", "k"], ["\uff25\uff38\uff25\uff23"], ["EXEC\u200b"],
]  # fmt: skip


@pytest.mark.parametrize("row", SMUGGLED, ids=lambda row: repr(" ".join(row)))
async def test_no_command_can_put_a_shared_connection_out_of_step(
    gateway: Gateway, http: httpx.AsyncClient, row: list[str]
) -> None:
    spelled = [row, [row[0].lower(), *row[1:]], [row[0].title(), *row[1:]]]
    for attempt in spelled:
        answer = await http.post(gateway.url, content=json.dumps(attempt))
        assert answer.status_code == 400
        answers = await post(http, f"{gateway.url}/pipeline", [["ECHO", "a"], attempt, ["ECHO", "b"]])
        assert answers[0] == {"result": "a"}
        assert "error" in answers[1]
        assert answers[2] == {"result": "b"}
        answer = await http.post(f"{gateway.url}/multi-exec", content=json.dumps([["ECHO", "a"], attempt]))
        assert answer.status_code == 400
        path = "/".join(quote(part, safe="") for part in attempt)
        if attempt[0].lower() not in ("subscribe", "psubscribe", "monitor"):
            assert (await http.get(f"{gateway.url}/{path}")).status_code == 400
    probes = await asyncio.gather(*(command(http, gateway, "ECHO", f"own {number}") for number in range(20)))
    assert probes == [f"own {number}" for number in range(20)]


async def test_a_client_that_leaves_takes_nobody_elses_answer_along(gateway: Gateway, valkey: Server) -> None:
    async with gateway.client() as http:
        for _ in range(10):
            leaving = [
                asyncio.create_task(
                    http.post(f"{gateway.url}/pipeline", content=b'[["INCR","gone"],["GET","gone"]]')
                )
                for _ in range(10)
            ]
            staying = [
                asyncio.create_task(command(http, gateway, "ECHO", str(number))) for number in range(10)
            ]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert await asyncio.gather(*staying) == [str(number) for number in range(10)]


# -- waiting commands and scripts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "result"),
    [
        (["BLPOP", "none", 0], None),
        (["BRPOP", "none", 0], None),
        (["BLMOVE", "none", "other", "LEFT", "LEFT", 0], None),
        (["BRPOPLPUSH", "none", "other", 0], None),
        (["BLMPOP", 0, 1, "none", "LEFT"], None),
        (["BZPOPMIN", "none", 0], None),
        (["BZMPOP", 0, 1, "none", "MIN"], None),
        (["XREAD", "BLOCK", 0, "STREAMS", "none", "$"], None),
        (["WAIT", 1, 0], 0),
        (["blpop", "list", 0], ["list", "x"]),
    ],
)
async def test_a_command_that_waits_answers_at_once(
    gateway: Gateway, http: httpx.AsyncClient, row: list[Any], result: Any
) -> None:
    async with asyncio.timeout(5):
        await command(http, gateway, "RPUSH", "list", "x")
        assert await command(http, gateway, *row) == result
        await command(http, gateway, "RPUSH", "list", "x")
        answers = await post(http, f"{gateway.url}/pipeline", [["PING"], row, ["PING"]])
    assert answers[0] == answers[2] == {"result": "PONG"}


async def test_an_error_of_a_command_that_waits_is_its_own(gateway: Gateway, http: httpx.AsyncClient) -> None:
    answer = await http.post(gateway.url, content=b'["BLPOP"]')
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "ERR wrong number of arguments for 'blpop' command",
    )
    await command(http, gateway, "SET", "s", "x")
    assert (await post(http, gateway.url, ["BLPOP", "s", 0]))["error"].startswith("WRONGTYPE ")


async def test_a_script_with_upstashs_flag_runs_and_is_found_by_its_own_sum(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    script = "#!lua flags=allow-key-locking\nreturn {KEYS[1], ARGV[1]}"
    known = hashlib.sha1(script.encode()).hexdigest()
    missing = await post(http, gateway.url, ["EVALSHA", known, 1, "k", "v"])
    assert missing["error"] == "NOSCRIPT No matching script. Please use EVAL."
    assert await command(http, gateway, "SCRIPT", "LOAD", script) == known
    assert await command(http, gateway, "SCRIPT", "EXISTS", known) == [1]
    assert await command(http, gateway, "EVALSHA", known, 1, "k", "v") == ["k", "v"]
    assert await command(http, gateway, "SCRIPT", "FLUSH") == "OK"
    answers = await post(
        http, f"{gateway.url}/pipeline", [["EVALSHA", known, 1, "k", "v"], ["EVAL", script, 1, "k", "v"]]
    )
    assert answers[0]["error"].startswith("NOSCRIPT")
    assert answers[1] == {"result": ["k", "v"]}
    answers = await post(http, f"{gateway.url}/multi-exec", [["EVALSHA", known, 1, "k", "w"]])
    assert answers == [{"result": ["k", "w"]}]


async def test_flushall_leaves_the_other_databases_alone(
    gateway: Gateway, http: httpx.AsyncClient, valkey: Server
) -> None:
    other = Client(valkey.socket)
    other.execute("SELECT", 5)
    other.execute("SET", "kept", "v")
    await command(http, gateway, "SET", "k", "v")
    assert await command(http, gateway, "FLUSHALL") == "OK"
    assert await command(http, gateway, "DBSIZE") == 0
    assert other.execute("GET", "kept") == b"v"
    other.close()


async def test_a_frozen_server_is_503_in_json_and_nobody_gets_a_late_reply(valkey: Server) -> None:

    options = LinkOptions(command_timeout=timedelta(milliseconds=100), connect_timeout=timedelta(seconds=5))
    async with (
        native_store(valkey, options=options) as store,
        gateway_for(store) as gateway,
        gateway.client() as http,
    ):
        valkey.freeze()
        answer = await http.get(f"{gateway.url}/echo/late")
        valkey.thaw()
        assert answer.status_code == 503
        assert answer.json() == {"error": "ERR the database did not answer in time; the command may have run"}

        async def works() -> bool:
            return (await http.get(f"{gateway.url}/echo/own")).json() == {"result": "own"}

        await eventually(works)
        answers = await asyncio.gather(*(command(http, gateway, "ECHO", str(number)) for number in range(50)))
        assert answers == [str(number) for number in range(50)]
