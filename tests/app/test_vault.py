"""Secrets at rest: sealed, opened by any key the server has, sealed anew after a change."""

import pytest

from app.settings import ApiSettings
from app.vault import SealBroken, Vault

OLD, NEW = "an old key that is long", "a new key that is long"
GIVEN = {
    "database_url": "postgresql+psycopg://nobody@localhost/nothing",
    "redis_url": "redis://localhost:1/0",
    "key_pepper": "a pepper for this test only",
}


def test_what_is_sealed_is_not_readable_and_opens():
    sealed = Vault([OLD]).seal("whsec_x")

    assert b"whsec" not in sealed
    assert Vault([OLD]).open(sealed) == "whsec_x"


def test_after_a_new_key_the_old_one_still_opens_until_all_is_resealed():
    sealed = Vault([OLD]).seal("whsec_x")
    both = Vault([NEW, OLD])

    assert both.open(sealed) == "whsec_x"
    assert Vault([NEW]).open(both.reseal(sealed)) == "whsec_x"


def test_without_its_key_a_secret_stays_shut():
    sealed = Vault([OLD]).seal("whsec_x")

    with pytest.raises(SealBroken):
        Vault([NEW]).open(sealed)
    with pytest.raises(SealBroken):
        Vault([NEW]).reseal(sealed)


def test_without_a_key_of_their_own_secrets_are_sealed_with_the_pepper_and_open_after_it_is_set():
    before = ApiSettings(**GIVEN)
    after = ApiSettings(**GIVEN, secrets_key=f"{NEW}, {OLD}")
    sealed = Vault(before.sealing_keys).seal("whsec_x")

    assert after.sealing_keys == [NEW, OLD, GIVEN["key_pepper"]]
    assert Vault(after.sealing_keys).open(sealed) == "whsec_x"
    with pytest.raises(SealBroken):
        Vault(before.sealing_keys).open(Vault(after.sealing_keys).seal("whsec_y"))


def test_a_short_key_and_a_network_that_is_none_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        ApiSettings(**GIVEN, secrets_key="short")
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        ApiSettings(**GIVEN, webhook_allow="10.0.0.1/8")
