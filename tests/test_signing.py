"""Our signature of a request is botocore's, byte for byte, whatever the request."""

from __future__ import annotations

from datetime import datetime, timezone

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from chathistory_async._aws.signing import Signer

# The characters of credentials, which headers carry.
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300)
regions = st.from_regex(r"[a-z]{2,4}(-[a-z]{3,9}){1,2}-[1-9]", fullmatch=True)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=5).map(".".join),
    st.tuples(labels, st.integers(1024, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.just("[::1]:8000"),
)
operations = st.sampled_from(["PutItem", "UpdateItem", "GetItem", "Query", "TransactWriteItems"])
moments = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31), timezones=st.just(timezone.utc))


class AtOneMoment(SigV4Auth):  # type: ignore[misc]  # botocore is not typed
    """botocore's signer, but for the clock that it asks."""

    def sign(self, request: AWSRequest, moment: datetime) -> None:
        request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        text = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(text, request))


@given(hosts, regions, secrets, secrets, st.none() | secrets, operations, st.binary(max_size=2000), moments)
def test_it_is_botocores(
    host: str,
    region: str,
    access_key: str,
    secret_key: str,
    token: str | None,
    operation: str,
    body: bytes,
    moment: datetime,
) -> None:
    credentials = ReadOnlyCredentials(access_key, secret_key, token)
    target = f"DynamoDB_20120810.{operation}"
    ours = Signer("dynamodb", region, host).headers(credentials, target, body, moment.timestamp())

    given_headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target, "User-Agent": "x"}
    request = AWSRequest("POST", f"https://{host}/", headers=given_headers, data=body)
    AtOneMoment(credentials, "dynamodb", region).sign(request, moment)
    theirs = {name.lower(): value for name, value in request.headers.items() if name != "User-Agent"}
    assert ours == theirs | {"host": host}


def test_its_time_is_now() -> None:
    headers = Signer("dynamodb", "eu-west-1", "localhost:8000").headers(ReadOnlyCredentials("a", "b", None), "t", b"")
    stamp = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - stamp).total_seconds()) < 60
