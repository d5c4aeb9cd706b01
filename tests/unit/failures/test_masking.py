"""Secrets leave no text."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from turnkeeper_worker.failures import mask

SECRETS = [
    "sk-abcdef1234567890",
    "sk-proj-a_b-c_1234567890",
    "sk-ant-api03-abcdef-123456",
    "sk-or-v1-0123456789abcdef",
    "sk-...abcd",
    "sk_live_abcdef123456",
    "xai-abcdef1234567890",
    "gsk_abcdef1234567890",
    "pplx-abcdef1234567890",
    "hf_abcdefABCDEF123456",
    "nvapi-abcdef1234567890",
    "ghp_abcdefABCDEF1234567890",
    "github_pat_11ABCDEF_abcdef",
    "xoxb-1234567890-abcdef",
    "AIzaSyA-abcdef_1234567890",
    "ya29.a0AfB_byCdef123456",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "ABSKQmVkcm9ja0FQSUtleQ==",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "frame", ["{}", "Incorrect API key provided: {}.", "key '{}' is bad", "({})", '{{"k":"{}"}}', "a\n{}\nb"]
)
def test_a_key_is_known_by_its_shape(secret: str, frame: str) -> None:
    assert secret not in mask(frame.format(secret))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer hunter2secret", "Authorization: *** ***"),
        ("bearer hunter2secret!", "bearer ***!"),
        ("Basic aHVudGVyOg==", "Basic ***"),
        ("api_key=hunter2, model=x", "api_key=***, model=x"),
        ("apiKey: 'hunter2'", "apiKey: '***'"),
        ('{"x-api-key": "hunter2"}', '{"x-api-key": "***"}'),
        ("password: hunter", "password: ***"),
        ("client_secret=hunter&x=1", "client_secret=***&x=1"),
        ("AWS_SECRET_ACCESS_KEY=hunter/2+x", "AWS_SECRET_ACCESS_KEY=***"),
        ("X-Amz-Signature=abc123 rest", "X-Amz-Signature=*** rest"),
        ("invalid api key test-key", "invalid api key ***"),
        ("invalid api key 'test_key'", "invalid api key '***'"),
        ("Incorrect API key provided: kod-****.", "Incorrect API key provided: ***."),
        ("https://user:pw@host/path", "https://***@host/path"),
        ("https://test-key@gateway.internal/v1?token=x#frag", "https://***@gateway.internal/v1?***"),
        ("https://host/path#frag", "https://host/path#***"),
        ("postgresql://me:pw@db:5432/app", "postgresql://***@db:5432/app"),
        ("redis://:pw@cache/0", "redis://***@cache/0"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=abc&X-Amz-Date=1", "https://b.s3.amazonaws.com/k?***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----.", "***."),
    ],
)
def test_a_credential_is_known_by_its_place(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached for gpt-5 in organization org-x on tokens (TPM): Limit 30000, Requested 36278.",
        "You can find your API key at https://platform.openai.com/account/api-keys.",
        "invalid x-api-key",
        "invalid subscription key or wrong API endpoint",
        "API key not valid. Please pass a valid API key.",
        "Missing bearer or basic authentication in header",
        "The api_key client option must be set",
        "No tool output found for function call",
        "prompt is too long: 210883 tokens > 199999 maximum",
        "request id 05db48fb-224e-4ff7-8266-b72865ef4f1f",
        "<StreamReset stream_id:67, error_code:2, remote_reset:True>",
        "input length and `max_tokens` exceed context limit: 184915 + 20000 > 204648",
        "================================================",
        "token count of 4096 exceeds",
        "task-based scheduling, risk-averse",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
RANDOM_PART = st.text(ALPHABET, min_size=16, max_size=60)
PREFIXES = st.sampled_from(
    ["sk-", "sk-ant-", "xai-", "gsk_", "AIza", "hf_", "ghp_", "AKIA", "Bearer ", "api_key=", "password: "]
)
AROUND = st.text(st.sampled_from(" \n\t\"'(){}[]<>,;.:="), max_size=6)
WORDS = st.text(st.characters(codec="utf-8"), max_size=30)


@given(before=WORDS, left=AROUND, prefix=PREFIXES, secret=RANDOM_PART, right=AROUND, after=WORDS)
def test_a_secret_never_survives_its_surroundings(
    before: str, left: str, prefix: str, secret: str, right: str, after: str
) -> None:
    assume(secret not in before + after)

    masked = mask(f"{before} {left}{prefix}{secret}{right} {after}")

    assert secret not in masked


@given(st.text(st.sampled_from("abc01-_=:/?#@.&*'\" \n{}[]()<>\\"), max_size=200))
def test_masking_twice_changes_nothing_that_matters(text: str) -> None:
    once = mask(text)

    assert len(mask(once)) <= len(once) + 3 * once.count("***")


@given(user=RANDOM_PART, query=RANDOM_PART, scheme=st.sampled_from(["http", "https", "wss", "redis", "amqp"]))
def test_urls_lose_user_info_and_query(user: str, query: str, scheme: str) -> None:
    masked = mask(f"GET {scheme}://{user}:x@host.example/path?k={query}: failed")

    assert user not in masked
    assert query not in masked
    assert "host.example/path" in masked
