from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from idagg.signing import Signer, signature, signing_key

OLD, NEW = (f"whsec_{base64.b64encode(size * b'k').decode()}" for size in (24, 64))
OTHER = f"whsec_{base64.b64encode(24 * b'o').decode()}"
BODY = b'{"unique_ids": 4000}'


def test_vector() -> None:
    """The signature is the one that Standard Webhooks gives as its example."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


@given(st.binary(min_size=24, max_size=64), st.text("ab:-.1", min_size=1), st.text(max_size=30))
def test_verified(key: bytes, webhook_id: str, text: str) -> None:
    """The standard's own library verifies what was signed, with any key."""
    secret = f"whsec_{base64.b64encode(key).decode()}"
    body = b'{"text": "%b"}' % text.encode().hex().encode()
    headers = Signer([secret]).headers(webhook_id, int(time.time()), body)
    assert Webhook(secret).verify(body, headers) == {"text": text.encode().hex()}


def test_rotation() -> None:
    """While a secret is rotated, receivers verify with either of the two, and with no other."""
    headers = Signer([NEW, OLD]).headers("idagg:1:2", int(time.time()), BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (NEW, OLD):
        assert Webhook(secret).verify(BODY, headers) == {"unique_ids": 4000}
    with pytest.raises(WebhookVerificationError, match="No matching signature found"):
        Webhook(OTHER).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError, match="No matching signature found"):
        Webhook(OLD).verify(BODY, Signer([NEW]).headers("idagg:1:2", int(time.time()), BODY))


def test_what_is_signed() -> None:
    """Name, time and body are signed: none of them can be changed."""
    headers = Signer([NEW]).headers("idagg:1:2", int(time.time()), BODY)
    later = str(int(headers["webhook-timestamp"]) + 1)
    for forged, body in (
        (headers, BODY + b" "),
        (headers | {"webhook-id": "idagg:2:2"}, BODY),
        (headers | {"webhook-timestamp": later}, BODY),
    ):
        with pytest.raises(WebhookVerificationError, match="No matching signature found"):
            Webhook(NEW).verify(body, forged)


def test_unsigned() -> None:
    """Without a secret, a callback still has its name and time."""
    assert Signer([]).headers("a", 7, BODY) == {"webhook-id": "a", "webhook-timestamp": "7"}


def test_line_break() -> None:
    """A line break behind a secret is not part of it."""
    assert signing_key(f"{OLD}\r\n") == signing_key(OLD)


@pytest.mark.parametrize("secret", ["", "whsec_no base64", "whsec_abc", "any text", OLD[6:], "ä"])
def test_no_secret(secret: str) -> None:
    """What is not a secret of the standard is refused, and not repeated."""
    with pytest.raises(ValueError, match=r"^a callback secret is whsec_ and base64$"):
        Signer([NEW, secret])


@pytest.mark.parametrize("size", [0, 1, 23, 65])
def test_length(size: int) -> None:
    """A key that the standard calls too short or too long is refused."""
    with pytest.raises(ValueError, match=r"^a callback secret has a key of 24 to 64 bytes$"):
        signing_key(f"whsec_{base64.b64encode(bytes(size)).decode()}")
