"""A delivery is taken when one of two keys has signed it for this URL, this body and this moment."""

import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from qstash import Receiver
from qstash.errors import SignatureError

from counterseal.jobs.delivery_signature import verify
from support.qstash import QStashServer

URL = "https://sign.example/api/jobs/email"
BODY = b'{"id":"default.1","type":"email"}'

qstash = QStashServer()


def verified(signature: str, *, url: str = URL, body: bytes = BODY, after: timedelta = timedelta(0)) -> bool:
    now_ms = int((time.time() + after.total_seconds()) * 1000)
    return (
        verify(signature, keys=[qstash.current, qstash.next], url=url, body=body, now_ms=now_ms) is not None
    )


def verified_by_the_official_receiver(signature: str, body: bytes = BODY) -> bool:
    try:
        Receiver(qstash.current, qstash.next).verify(signature=signature, body=body.decode(), url=URL)
    except (SignatureError, KeyError):
        return False
    return True


@pytest.mark.parametrize("key", [qstash.current, qstash.next], ids=["current", "next"])
@pytest.mark.parametrize("padded", [False, True], ids=["bare", "padded"])
@pytest.mark.parametrize("body", [BODY, b"", "Grüße".encode()], ids=["json", "empty", "umlauts"])
def test_what_either_key_has_signed_is_taken_here_and_by_the_official_receiver(key, padded, body):
    signature = qstash.sign(URL, body, key=key, padded=padded)
    assert verified(signature, body=body)
    assert verified_by_the_official_receiver(signature, body)


FORGED: dict[str, dict[str, Any]] = {
    "another key": {"key": "sig_" + "0" * 28},
    "another issuer": {"iss": "upstash"},
    "no issuer": {"iss": None},
    "another subject": {"sub": URL + "/"},
    "the subject of another host": {"sub": URL.replace("sign.example", "evil.example")},
    "no subject": {"sub": None},
    "another body": {"body": "x" * 43},
    "no body": {"body": None},
    "expired": {"exp": int(time.time()) - 10},
    "no expiry": {"exp": None},
    "not yet": {"nbf": int(time.time()) + 86_400},
    "no beginning": {"nbf": None},
}


@pytest.mark.parametrize("claims", FORGED.values(), ids=FORGED)
def test_what_is_forged_is_refused_here_and_by_the_official_receiver(claims):
    signature = qstash.sign(URL, BODY, **claims)
    assert not verified(signature)
    assert not verified_by_the_official_receiver(signature)


REFUSED_BESIDES: dict[str, dict[str, Any]] = {
    "no id of the delivery": {"jti": None},
    "an empty id": {"jti": ""},
    "a long id": {"jti": "j" * 300},
    "good for a day": {"exp": int(time.time()) + 86_400},
    "an expiry that is none": {"exp": "soon"},
    "an endless expiry": {"exp": 1e300},
}


@pytest.mark.parametrize("claims", REFUSED_BESIDES.values(), ids=REFUSED_BESIDES)
def test_what_could_be_replayed_is_refused(claims):
    assert not verified(qstash.sign(URL, BODY, **claims))


@pytest.mark.parametrize("signature", ["", "x", "a.b.c", "ä.ö.ü", "." * 5000])
def test_what_is_no_token_is_refused(signature):
    assert not verified(signature)


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_no_other_algorithm_is_taken(algorithm):
    claims = jwt.decode(qstash.sign(URL, BODY), options={"verify_signature": False})
    key = "" if algorithm == "none" else qstash.current * 2
    forged = jwt.encode(claims, key, algorithm=algorithm)
    keys = [key or qstash.current]
    assert verify(forged, keys=keys, url=URL, body=BODY, now_ms=int(time.time() * 1000)) is None


def test_a_signature_is_good_until_it_expires_and_for_clocks_that_differ_a_little():
    signature = qstash.sign(URL, BODY)
    assert verified(signature, after=timedelta(seconds=303))
    assert not verified(signature, after=timedelta(seconds=306))


def test_another_body_or_url_than_the_signed_one_is_refused():
    signature = qstash.sign(URL, BODY)
    assert verified(signature)
    assert not verified(signature, body=BODY + b" ")
    assert not verified(signature, url=URL + "?x=1")
