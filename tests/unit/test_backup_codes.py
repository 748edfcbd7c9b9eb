"""Backup codes: how they are made, typed and hashed."""

from __future__ import annotations

import re

from argon2 import PasswordHasher, extract_parameters
from hypothesis import example, given
from hypothesis import strategies as st

from counterseal.accounts.backup_codes import hash_backup_codes, new_backup_codes, typed_backup_code
from counterseal.accounts.password import Passwords


def test_there_are_ten_codes_of_80_bits_in_groups_of_four():
    made = [code for _ in range(50) for code in new_backup_codes()]
    assert len(set(made)) == 500
    assert all(re.fullmatch("(?:[A-Z2-7]{4}-){3}[A-Z2-7]{4}", code) for code in made)
    used = {character for code in made for character in code}
    assert len(used) == 33


def test_groups_spaces_case_and_look_alikes_do_not_matter():
    for typed in ("abcd-efgh-ijkl-mno2", " ABCD EFGH IJKL MNO2 ", "abcdefghijklmno2", "ABCD-EFGH-1JKL-MN02"):
        assert typed_backup_code(typed) == "ABCDEFGHIJKLMNO2"
    assert typed_backup_code("8BCD-EFGH-IJKL-MNO2") == "BBCDEFGHIJKLMNO2"


@given(
    st.text() | st.binary() | st.integers() | st.none() | st.from_regex("[a-z018 -]{10,30}", fullmatch=True)
)
@example("123456")
@example("A" * 15)
@example("A" * 17)
@example("A" * 2**20)
@example("\u0131" * 16)
@example("ﬀ" * 8)
@example("ABCDEFGHIJKLMNO9")
def test_any_other_text_is_no_code(text: object):
    code = typed_backup_code(text)
    assert code is None or re.fullmatch("[A-Z2-7]{16}", code)
    assert code is None or typed_backup_code(code) == code


async def test_kept_are_argon2id_hashes_with_the_costs_that_were_decided_and_a_salt_each():
    codes = new_backup_codes()[:2]
    kept = await hash_backup_codes([codes[0], codes[0]], Passwords())
    assert len(set(kept)) == 2
    for text in kept:
        found = extract_parameters(text)
        assert (found.type.name, found.memory_cost, found.time_cost, found.parallelism) == (
            "ID",
            19 * 1024,
            2,
            1,
        )
        assert PasswordHasher().verify(text, codes[0].replace("-", ""))
