from __future__ import annotations

import pytest
from headrace.errors import BadRequest, RequestError
from headrace.gateway.head import read_answer, read_head
from hypothesis import given
from hypothesis import strategies as st

HOST = (b"Host", b"a")
token = st.text("abcdefghijklmnopqrstuvwxyzABCDEFXYZ-_0123456789", min_size=1, max_size=20).map(str.encode)
value = st.binary(max_size=30)


def head(*headers, url=b"/e/x", method=b"POST", version="1.1"):
    return read_head(method, url, version, [HOST, *headers])


def names(forward: bytes) -> list[bytes]:
    return [line.split(b":")[0].lower() for line in forward.split(b"\r\n") if line]


@given(st.lists(st.tuples(token, value), max_size=12))
def test_no_input_puts_a_foreign_line_into_the_forwarded_head(headers):
    try:
        made = head(*headers)
    except RequestError:
        return
    lines = made.forward.split(b"\r\n")
    assert lines[-1] == b""
    assert len(lines) - 1 <= len(headers) + 1
    assert all(b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines)
    allowed = {b"x-headrace-timeout", b"x-headrace-priority"}
    for name in names(made.forward):
        assert name not in (
            b"authorization",
            b"connection",
            b"transfer-encoding",
            b"content-length",
            b"cookie",
            b"te",
            b"upgrade",
        )
        assert not name.replace(b"_", b"-").startswith(b"x-headrace-") or name in allowed


@given(st.lists(st.tuples(token, st.text("abc/;=", max_size=10).map(str.encode)), max_size=12))
def test_no_answer_passes_what_must_stay(headers):
    answer = read_answer([(n, v) for n, v in headers if n.lower() != b"content-length"])
    for name in names(answer.forward):
        assert name not in (b"set-cookie", b"connection", b"transfer-encoding", b"upgrade")
        assert not name.startswith(b"x-headrace-")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Host", b"b")],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"1"), (b"Content-Length", b"1")],
        [(b"Content-Length", b"-1")],
        [(b"Content-Length", b"1_0")],
        [(b"Content-Length", b"9" * 19)],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"chunked, chunked")],
        [(b"Authorization", b"a"), (b"Authorization", b"b")],
        [(b"X-Headrace-Timeout", b"1"), (b"X-Headrace-Timeout", b"2")],
        [(b"Expect", b"the-worst")],
        [(b"X", b"a\nEvil: 1")],
        [(b"X", b"a\r\nEvil: 1")],
        [(b"X", b"a\0")],
    ],
)
def test_conflicts_are_refused(headers):
    with pytest.raises(BadRequest):
        head(*headers)


def test_hop_by_hop_headers_and_those_they_name_stay():
    made = head(
        (b"Connection", b"close, X-A"),
        (b"X-A", b"1"),
        (b"X-B", b"2"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"x"),
    )
    assert made.close
    assert names(made.forward) == [b"host", b"x-b"]
    # Naming them in Connection does not make the content's own headers disappear.
    made = head((b"Connection", b"Content-Type, Host"), (b"Content-Type", b"text/plain"))
    assert names(made.forward) == [b"host", b"content-type"]


def test_the_target_is_brought_to_its_origin_form():
    assert head(url=b"/e/x?a=%20#".rstrip(b"#")).target == b"/e/x?a=%20"
    assert head(url=b"http://a/e/x").target == b"/e/x"
    assert head(url=b"HTTP://A?x=1").target == b"/?x=1"
    for url in (b"http://b/e/x", b"ftp://a/e/x", b"*", b"a:80", b"/a#b"):
        with pytest.raises(BadRequest):
            head(url=url)


def test_only_http_1_is_spoken_and_1_0_closes():
    assert head(version="1.0").close
    assert read_head(b"GET", b"/", "1.0", []).forward == b"Host: headrace\r\n"
    for version in ("0.9", "2.0", "1.2"):
        with pytest.raises(BadRequest):
            head(version=version)
    with pytest.raises(BadRequest):
        head((b"Transfer-Encoding", b"chunked"), version="1.0")


def test_an_upgrade_needs_both_headers():
    assert head((b"Upgrade", b"websocket"), (b"Connection", b"keep-alive, Upgrade")).upgrade == b"websocket"
    assert head((b"Upgrade", b"websocket")).upgrade == b""
    assert head((b"Upgrade", b"websocket"), (b"Connection", b"keep-alive")).upgrade == b""


@pytest.mark.parametrize(
    ("media", "sandboxed"),
    [
        (b"text/html", True),
        (b"Text/HTML; charset=utf-8", True),
        (b"image/svg+xml", True),
        (b"application/xhtml+xml", True),
        (None, True),
        (b"application/json", False),
        (b"text/event-stream", False),
        (b"application/json; charset=utf-8", False),
        (b"image/png", False),
        (b"application/rss+xml", True),
        (b"text/xsl", True),
        (b"multipart/x-mixed-replace; boundary=x", True),
        (b"\x0btext/html", True),
        (b"application/json, text/html", True),
        (b"*/*", True),
        (b"unknown/unknown", True),
    ],
)
def test_what_a_browser_would_run_is_put_in_a_sandbox(media, sandboxed):
    answer = read_answer([(b"Content-Type", media)] if media else [])
    assert (b"Content-Security-Policy: sandbox\r\n" in answer.forward) is sandboxed


def test_two_content_types_are_put_in_a_sandbox():
    answer = read_answer([(b"Content-Type", b"text/html"), (b"content-type", b"application/json")])
    assert b"Content-Security-Policy: sandbox\r\n" in answer.forward


ORIGIN_WIDE = [
    b"Service-Worker-Allowed", b"Clear-Site-Data", b"Alt-Svc", b"STRICT-TRANSPORT-SECURITY",
    b"X_Headrace_Token", b"x-headrace_token", b"SET-COOKIE",
]  # fmt: skip


@pytest.mark.parametrize("name", ORIGIN_WIDE)
def test_what_speaks_for_the_whole_origin_stays(name):
    assert read_answer([(name, b"/"), (b"Content-Type", b"application/json"), (b"X-A", b"1")]).forward == (
        b"Content-Type: application/json\r\nX-A: 1\r\n"
    )


def test_no_control_character_leaves_in_an_answer():
    answer = read_answer([(b"X", b"a\rSet-Cookie: b"), (b"Y", b"a\nb"), (b"Z", b"1")])
    assert names(answer.forward) == [b"z", b"content-security-policy"]


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
def test_methods_of_proxies_are_refused(method):
    with pytest.raises(RequestError) as refused:
        head(method=method)
    assert refused.value.status == 405
