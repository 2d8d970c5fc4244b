"""Ed25519 as in RFC 8032, keys as text, and private keys that stay private."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from wire import keys

if TYPE_CHECKING:
    from pathlib import Path

# RFC 8032, section 7.1: secret key, public key, message, signature
RFC_8032 = {
    "test 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "test 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "test 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "test sha(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}


def text_of(public: bytes) -> str:
    return "ed25519:" + base64.urlsafe_b64encode(public).decode().rstrip("=")


@pytest.mark.parametrize("name", sorted(RFC_8032))
def test_signatures_are_those_of_rfc_8032(name: str) -> None:
    seed, public, message, signature = (bytes.fromhex(part) for part in RFC_8032[name])
    assert keys.signer(seed)(message) == signature
    assert keys.public_text(seed) == text_of(public)
    verify = keys.verifier(text_of(public))
    assert verify(message, signature)
    assert not verify(message + b"\x00", signature)
    assert not verify(message, signature[:-1])
    assert not verify(message, b"")
    assert not message or not verify(message[1:], signature + message[:1])


def test_a_key_of_small_order_verifies_nothing() -> None:
    """Under the neutral point R = A and S = 0 would be a signature of every message."""
    neutral = b"\x01" + bytes(31)
    assert not keys.verifier(text_of(neutral))(b"anything", neutral + bytes(32))


def test_a_signature_with_a_scalar_above_the_group_order_is_refused() -> None:
    """RFC 8032, section 5.1.7: S must be below L, or a second signature could be made of a first."""
    seed = bytes(32)
    order = 2**252 + 27742317777372353535851937790883648493
    good = keys.signer(seed)(b"x")
    scalar = int.from_bytes(good[32:], "little") + order
    assert not keys.verifier(keys.public_text(seed))(b"x", good[:32] + scalar.to_bytes(32, "little"))


def test_a_key_is_saved_for_its_owner_only_and_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    seed = keys.generate()
    keys.save_private(path, seed)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load_signer(path)(b"x") == keys.signer(seed)(b"x")


def test_a_umask_does_not_open_the_key_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys.save_private(tmp_path / "k", bytes(32))
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    keys.save_private(path, bytes(32))
    with pytest.raises(keys.KeyTextError, match="never overwritten"):
        keys.save_private(path, keys.generate())
    assert keys.load_seed(path) == bytes(32)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device.key"
    keys.save_private(path, bytes(32))
    path.chmod(mode)
    with pytest.raises(keys.KeyTextError, match="chmod 600"):
        keys.load_signer(path)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_key_that_systemd_hands_over_by_an_access_list_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = tmp_path / "device.key"
    keys.save_private(path, bytes(32))
    path.chmod(mode)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.load_seed(path) == bytes(32)


@pytest.mark.parametrize(("place", "mode"), [(".", 0o444), (".", 0o460), (".", 0o404), ("below", 0o440)])
def test_beside_the_credentials_of_systemd_a_key_is_as_private_as_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: int
) -> None:
    (tmp_path / "below").mkdir()
    path = tmp_path / place / "device.key"
    keys.save_private(path, bytes(32))
    path.chmod(mode)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(keys.KeyTextError, match="chmod 600"):
        keys.load_seed(path)


def test_a_missing_or_a_damaged_key_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(keys.KeyTextError, match="No such file"):
        keys.load_signer(tmp_path / "none")
    for number, content in enumerate([b"", b"ed25519-private:short\n", b"\xff" * 300, b"ed25519:" + b"A" * 43]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(keys.KeyTextError, match="is not a key"):
            keys.load_signer(path)


GOOD = keys.public_text(bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "=",
        " " + GOOD,
        GOOD + "\n",
        GOOD.upper(),
        GOOD[8:],
        "rsa" + GOOD[7:],
    ],
)
def test_a_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(keys.KeyTextError, match="is not a key"):
        keys.verifier(text)


def test_one_key_has_one_text() -> None:
    """43 letters hold 258 bits: the last two must be zero, or four texts would name one key."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    taken = []
    for letter in alphabet:
        try:
            keys.verifier(GOOD[:-1] + letter)
        except keys.KeyTextError:
            continue
        taken.append(letter)
    assert len(taken) == 16
    assert GOOD[-1] in taken
