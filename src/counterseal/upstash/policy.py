"""Policy: the commands that are served over REST, and how each is treated. Data only; `commands.py` acts on it.

It is an allow-list: what Upstash's command reference has is served, so that a program which runs here runs there, and a
command of the next server version stays shut until somebody opens it. The same list, as ACL rules, confines the server
connection (`tenant.py`), so that a script can call nothing else either.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Treatment(Enum):
    """What is done with a command before it is sent."""

    PASS = "sent as it is"  # noqa: S105 - no password
    NEVER_WAITS = "run inside MULTI/EXEC, where it cannot wait"
    NEVER_WAITS_IF_ASKED = "the same when BLOCK is among its arguments"
    SUBCOMMAND = "sent when its subcommand is listed"
    SCRIPT = "sent without the flag that only Upstash knows"
    SCRIPT_BY_SUM = "sent with the sum under which the server knows the script"
    SCRIPT_CONTROL = "SCRIPT: LOAD and EXISTS answer by the sum that the client knows"
    FUNCTION_CONTROL = "FUNCTION: LOAD is sent without the flag that only Upstash knows"
    CHANNEL = "refused on reserved channels"
    CHANNEL_LIST = "PUBSUB: reserved channels are left out"
    CONFIG = "one parameter only"
    INFO = "some sections, about this database only"
    NOTHING = "answered with an empty array, as the service does"
    SELECT = "one logical database"
    FLUSH = "FLUSHALL runs as FLUSHDB"
    COPY = "within the database only"
    SESSION = "refused: it is about the state of a connection"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SENT_AS_IT_IS = _words("""
    BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS GETBIT SETBIT
    ECHO PING
    FCALL FCALL_RO
    DEL DUMP EXISTS EXPIRE EXPIREAT EXPIRETIME KEYS PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PTTL RANDOMKEY RENAME
    RENAMENX RESTORE SCAN TOUCH TTL TYPE UNLINK
    GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUS_RO GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEOSEARCH
    GEOSEARCHSTORE
    HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET
    HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX HSTRLEN HTTL HVALS
    PFADD PFCOUNT PFMERGE
    LINDEX LINSERT LLEN LMOVE LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM RPOP RPOPLPUSH RPUSH RPUSHX
    DBSIZE FLUSHDB TIME
    SADD SCARD SDIFF SDIFFSTORE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SPOP SRANDMEMBER
    SREM SSCAN SUNION SUNIONSTORE
    ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN
    ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK
    ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION ZUNIONSTORE
    XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX XGROUP XINFO XLEN XPENDING XRANGE XREVRANGE XTRIM
    APPEND DECR DECRBY DELEX DIGEST GET GETDEL GETEX GETRANGE GETSET INCR INCRBY INCRBYFLOAT MGET MSET MSETNX PSETEX
    SET SETEX SETNX SETRANGE STRLEN SUBSTR
""")
"""Commands that nothing need be done about."""

WAITING = _words("BLPOP BRPOP BRPOPLPUSH BLMOVE BLMPOP BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF")
"""Commands that would hold up everybody on a shared connection."""

WAITING_IF_ASKED = _words("XREAD XREADGROUP")
"""Commands that do so with the option BLOCK."""

SUBCOMMANDS: Mapping[str, frozenset[str]] = {
    "ACL": _words("CAT GENPASS"),
    "FUNCTION": _words("DELETE FLUSH KILL LIST LOAD STATS"),
    "MEMORY": _words("USAGE"),
    "PUBSUB": _words("CHANNELS NUMPAT NUMSUB"),
    "SCRIPT": _words("EXISTS FLUSH KILL LOAD"),
}
"""Commands of which only these subcommands are served."""

SESSION = _words("""
    AUTH MULTI EXEC DISCARD WATCH UNWATCH HELLO RESET SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE
    SUNSUBSCRIBE CLIENT MONITOR QUIT ASKING READONLY READWRITE
""")
"""Commands about the state of a connection, which REST does not have."""

OWN_TREATMENT: Mapping[str, Treatment] = {
    "EVAL": Treatment.SCRIPT,
    "EVAL_RO": Treatment.SCRIPT,
    "EVALSHA": Treatment.SCRIPT_BY_SUM,
    "EVALSHA_RO": Treatment.SCRIPT_BY_SUM,
    "SCRIPT": Treatment.SCRIPT_CONTROL,
    "FUNCTION": Treatment.FUNCTION_CONTROL,
    "PUBLISH": Treatment.CHANNEL,
    "PUBSUB": Treatment.CHANNEL_LIST,
    "ACL": Treatment.SUBCOMMAND,
    "MEMORY": Treatment.SUBCOMMAND,
    "CONFIG": Treatment.CONFIG,
    "INFO": Treatment.INFO,
    "COMMAND": Treatment.NOTHING,
    "SELECT": Treatment.SELECT,
    "FLUSHALL": Treatment.FLUSH,
    "COPY": Treatment.COPY,
}
"""Commands with a treatment of their own."""

CONFIG_PARAMETER = "notify-keyspace-events"
"""The one parameter that CONFIG reads and writes."""

INFO_SECTIONS = ("server", "clients", "memory", "stats", "cluster", "keyspace")
"""The sections that INFO shows."""

INFO_HIDDEN = frozenset(("executable", "config_file", "availability_zone", "process_id", "run_id", "os"))
"""Fields of those sections that tell of the machine, and are left out."""

TREATMENTS: Mapping[str, Treatment] = {
    **dict.fromkeys(SENT_AS_IT_IS, Treatment.PASS),
    **dict.fromkeys(WAITING, Treatment.NEVER_WAITS),
    **dict.fromkeys(WAITING_IF_ASKED, Treatment.NEVER_WAITS_IF_ASKED),
    **dict.fromkeys(SESSION, Treatment.SESSION),
    **OWN_TREATMENT,
}
"""Every command that is known, by its name in capitals. What is not here is not available."""

_NOT_IN_SCRIPTS = frozenset(
    (
        Treatment.SESSION,
        Treatment.CONFIG,
        Treatment.INFO,
        Treatment.NOTHING,
        Treatment.SELECT,
        Treatment.FLUSH,
        Treatment.COPY,
    )
)


def confining_rules(known: frozenset[str]) -> list[str]:
    """The list as ACL rules, for the commands and `COMMAND|SUBCOMMAND`s that the server knows; all others are shut.

    What a connection needs for itself is in it: logging in, its name, MULTI and EXEC, subscriptions. SELECT and COPY
    are not: whether they can be confined to a database depends on the server.
    """
    rules = ["-@all"]
    whole = {name for name, treatment in TREATMENTS.items() if treatment not in _NOT_IN_SCRIPTS}
    whole |= _words("AUTH HELLO QUIT MULTI EXEC DISCARD SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE")
    wanted = [name for name in sorted(whole) if name not in SUBCOMMANDS]
    wanted += [f"{name}|{word}" for name in sorted(SUBCOMMANDS) for word in sorted(SUBCOMMANDS[name])]
    wanted += [f"CLIENT|{word}" for word in ("SETNAME", "SETINFO", "GETNAME", "ID")]
    return [*rules, *(f"+{name.lower()}" for name in wanted if name in known)]
