"""Enrolments: the tokens that may be claimed, and the certificates that were issued. A part of the store, with its SQL.

A certificate is never forgotten while it could be shown: what is revoked must stay on the list until it ends by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from broker.database import insert, select

if TYPE_CHECKING:
    from broker.database import Database


class TokenRow(Struct, frozen=True):
    """A token, without its secret."""

    token_id: str
    public_key: str  # ed25519:…, by which its claim is sealed
    device_id: str  # whom it is for; empty: anyone
    expires_unix_s: float
    claimed: str = ""  # serial number of the certificate that it was used for


class CertificateRow(Struct, frozen=True):
    """A certificate of the fleet's authority."""

    serial: str  # in hex
    name: str  # its common name; of a token's certificate `name_in` of the token's id
    content: bytes  # DER
    issued_unix_s: float
    expires_unix_s: float
    revoked_unix_s: float = 0.0

    @property
    def due_unix_s(self) -> float:
        """When another one may take its place: two thirds of its life are over."""
        return self.issued_unix_s + (self.expires_unix_s - self.issued_unix_s) * 2 / 3


_TOKEN: Final = ", ".join(TokenRow.__struct_fields__)
_CERTIFICATE: Final = ", ".join(CertificateRow.__struct_fields__)


def name_in(token_id: str) -> str:
    """What the certificate of a token is called here. All of them have the common name `claim`."""
    return f"token {token_id}"


class Enrolments:
    """The tables `tokens` and `certificates` of this database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def put_token(self, row: TokenRow, certificate: CertificateRow) -> None:
        """Keep a new token, and the certificate that is in its text."""
        values = msgspec.structs.asdict(row)
        with self._db.transaction():
            self._db.run(insert("tokens", values), values)
            self.put_certificate(certificate)

    def put_certificate(self, row: CertificateRow) -> None:
        """Keep a certificate that was issued."""
        values = msgspec.structs.asdict(row)
        self._db.run(insert("certificates", values), values)

    def use(self, token_id: str, serial: str) -> None:
        """The token was claimed, and got this certificate."""
        values = {"token_id": token_id, "serial": serial}
        self._db.run("UPDATE tokens SET claimed = :serial WHERE token_id = :token_id", values)

    def withdraw(self, token_id: str, unix_s: float) -> None:
        """The token can no longer be claimed, and opens no door."""
        with self._db.transaction():
            self._db.run("DELETE FROM tokens WHERE token_id = :token_id", {"token_id": token_id})
            self.revoke(name_in(token_id), unix_s)

    def revoke(self, name: str, unix_s: float) -> int:
        """No certificate of this name holds any longer; how many did."""
        return self._db.run(
            "UPDATE certificates SET revoked_unix_s = :now "
            "WHERE name = :name AND revoked_unix_s = 0 AND expires_unix_s > :now",
            {"name": name, "now": unix_s},
        )

    def device_key(self, device_id: str) -> str:
        """The public key of a device in the fleet; empty where there is none of this name."""
        found = self._db.rows(select("public_key", "devices WHERE device_id = :name"), {"name": device_id})
        return str(found[0][0]) if found else ""

    def token(self, token_id: str) -> TokenRow | None:
        """A token."""
        return next(iter(self._tokens("WHERE token_id = :name", token_id)), None)

    def certificate(self, serial: str) -> CertificateRow | None:
        """The certificate with this serial number."""
        return next(iter(self._certificates("WHERE serial = :name", serial)), None)

    def newest(self, name: str) -> CertificateRow | None:
        """The newest certificate of this name that is not revoked."""
        where = "WHERE name = :name AND revoked_unix_s = 0 ORDER BY issued_unix_s DESC LIMIT 1"
        return next(iter(self._certificates(where, name)), None)

    def tokens(self) -> list[TokenRow]:
        """Every token, in the order in which they end."""
        return self._tokens("ORDER BY expires_unix_s, token_id")

    def certificates(self) -> list[CertificateRow]:
        """Every certificate, by name, oldest first."""
        return self._certificates("ORDER BY name, issued_unix_s")

    def revoked(self) -> list[tuple[int, float]]:
        """(serial number, when) of all that is revoked."""
        rows = self._db.rows(select("serial, revoked_unix_s", "certificates WHERE revoked_unix_s > 0 ORDER BY serial"))
        return [(int(serial, 16), when) for serial, when in rows]

    def _tokens(self, rest: str, name: str = "") -> list[TokenRow]:
        return [TokenRow(*row) for row in self._rows(_TOKEN, f"tokens {rest}", name)]

    def _certificates(self, rest: str, name: str = "") -> list[CertificateRow]:
        found = (CertificateRow(*row) for row in self._rows(_CERTIFICATE, f"certificates {rest}", name))
        return [msgspec.structs.replace(row, content=bytes(row.content)) for row in found]

    def _rows(self, columns: str, rest: str, name: str) -> list[tuple[Any, ...]]:
        return self._db.rows(select(columns, rest), {"name": name})
