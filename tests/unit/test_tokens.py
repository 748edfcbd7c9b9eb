"""Secrets, their hashes, and ids that sort by time."""

from __future__ import annotations

import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import RFC_4122

from counterseal.core.tokens import hash_token, new_secret, uuid7


def test_a_secret_has_256_bits_in_43_characters_and_never_comes_twice():
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", secret) for secret in made)


def test_a_token_is_kept_as_its_sha256_whatever_text_it_is():
    assert hash_token("abc") == hashlib.sha256(b"abc").digest()
    assert hash_token("ü\0") != hash_token("ü")
    assert len(hash_token("\ud800")) == 32


def test_an_id_carries_its_version_and_its_time():
    now = time.time_ns() // 1_000_000 + 86_400_000
    made = uuid7(now)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 >= now  # later, where another test of this process has made ids of a later time


def test_ids_of_one_moment_and_of_a_clock_that_went_back_still_grow():
    now = time.time_ns() // 1_000_000 + 2 * 86_400_000
    made = [uuid7(now - step // 10) for step in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000
    assert all(id_.version == 7 and id_.variant == RFC_4122 for id_ in made)


def test_threads_never_get_the_same_id():
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: uuid7(0), range(4000)))
    assert len(set(made)) == 4000


def test_the_random_part_is_not_a_counter():
    steps = {uuid7(1).int & (1 << 62) - 1 for _ in range(100)}
    ordered = sorted(steps)
    assert len({later - earlier for earlier, later in pairwise(ordered)}) > 50
