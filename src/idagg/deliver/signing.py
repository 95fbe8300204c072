"""Signatures of callbacks, as Standard Webhooks 1.0 has them (https://www.standardwebhooks.com). Pure.

A secret is ``whsec_`` and the base64 of 24 to 64 bytes, and nothing else. The receivers' libraries decode
base64 with or without the prefix: if other text were taken as it is, each verification would fail, and
nobody would hear why here. Text that a person made up is refused for another reason, too: who has one
callback can try passwords on it. The asymmetric form (``whsk_``, ed25519) is refused: the library for it
would be the largest of all that are installed.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


class Signer:
    """Signs with each of ``secrets``: two while one is rotated, so that receivers may verify with either.

    Raises ValueError for what is no secret.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [signing_key(secret) for secret in secrets]

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The fields of an attempt, made at ``timestamp``; without a secret it is not signed."""
        fields = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
        if self._keys:
            fields["webhook-signature"] = " ".join(
                signature(key, webhook_id, timestamp, body) for key in self._keys
            )
        return fields


def signing_key(secret: str) -> bytes:
    """The key in a secret. Raises ValueError, without the secret in it."""
    encoded = secret.rstrip("\r\n").removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii.Error is one
        key = b""
    # Libraries differ in what they make of base64 that is not in its one canonical form.
    if not secret.startswith(_PREFIX) or base64.b64encode(key).decode() != encoded:
        raise ValueError(f"a callback secret is {_PREFIX} and base64")
    if len(key) not in _KEY_BYTES:
        raise ValueError("a callback secret has a key of 24 to 64 bytes")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """One signature, with its version."""
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"
