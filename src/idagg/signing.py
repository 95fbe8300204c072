"""Signatures of callbacks by Standard Webhooks 1.0 (https://www.standardwebhooks.com). Pure.

A secret is ``whsec_`` and the base64 of 24 to 64 bytes, and nothing else. The receivers' libraries decode
base64, with or without the prefix. If idagg used other text as it is, each verification would fail at the
receivers, and no log here would show it. A password is refused for another reason, too: with one callback, an
attacker can test guesses offline. The asymmetric form (``whsk_``, ed25519) is refused, because its library
would be the largest of all dependencies.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


class Signer:
    """Signs with each of ``secrets``. During a rotation there are two, and receivers may verify with either.

    Raises ValueError for an invalid secret.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [signing_key(secret) for secret in secrets]

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The header fields of an attempt at ``timestamp``. Without a secret there is no signature."""
        fields = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
        if self._keys:
            fields["webhook-signature"] = " ".join(
                signature(key, webhook_id, timestamp, body) for key in self._keys
            )
        return fields


def signing_key(secret: str) -> bytes:
    """The key in a secret. Raises ValueError, whose text does not contain the secret."""
    encoded = secret.rstrip("\r\n").removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii.Error is one
        key = b""
    # Libraries decode base64 that is not canonical in different ways.
    if not secret.startswith(_PREFIX) or base64.b64encode(key).decode() != encoded:
        raise ValueError(f"a callback secret is {_PREFIX} and base64")
    if len(key) not in _KEY_BYTES:
        raise ValueError("a callback secret has a key of 24 to 64 bytes")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """One signature, with its version prefix."""
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"
