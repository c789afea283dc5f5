import asyncio.selector_events
import errno
import ipaddress
import random
import socket
import threading
import time
import tracemalloc
import urllib.parse

import pytest
from yarl import URL

from clip_italian.config import ConfigError
from data_prep import crawl
from data_prep.addresses import DownloadError, Guard, is_public, parse_url
from data_prep.download import DownloadOptions, download
from data_prep.robots import header_forbids, parse_robots, product
from tests.data_prep.servers import HTML, serving

LOOPBACK = ("127.0.0.0/8",)
PICTURE = bytes(range(256)) * 300
REASONS = {
    "", "address not allowed", "bad URL", "connection failed", "empty", "host not found",
    "not found", "not http(s)", "robots.txt forbids", "status 3xx", "status 4xx", "status 5xx",
    "timed out", "too many bytes", "too many redirects", "too many requests", "truncated",
    "X-Robots-Tag forbids",
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(crawl, "_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def connects(monkeypatch):
    """Addresses that any socket was asked to connect to; only 127.0.0.0/8 is really reached."""
    asked = []
    loops = asyncio.selector_events.BaseSelectorEventLoop
    real = loops.sock_connect

    async def connect(loop, sock, address):
        asked.append(address[0])
        if not address[0].startswith("127."):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "no network in tests")
        await real(loop, sock, address)

    monkeypatch.setattr(loops, "sock_connect", connect)
    return asked


@pytest.fixture
def names(monkeypatch):
    """Name → its addresses, or a list of such answers for one look-up after the other."""
    known, real = {}, socket.getaddrinfo

    def look_up(host, port, *args):
        if host not in known:
            try:  # spellings of numbers that the system knows
                return real(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
            except socket.gaierror:
                raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
        found = known[host]
        if isinstance(found[0], list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return [_info(address, port) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def _info(address, port):
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


def options(**changes):
    return DownloadOptions(**{"allow_networks": LOOPBACK, "timeout": 30.0, **changes})


def fetch(urls, **changes):
    """Answers in the order of the URLs, of which each must have exactly one."""
    answers = sorted(download(urls, options(**changes)), key=lambda answer: answer.index)
    assert [answer.index for answer in answers] == list(range(len(urls)))
    assert all(bool(answer.data) == (answer.reason == "") for answer in answers)
    return answers


def reasons(urls, **changes):
    return [answer.reason for answer in fetch(urls, **changes)]


@pytest.fixture(scope="module")
def server():
    with serving(["127.0.0.1"], pictures=[PICTURE]) as running:
        yield running


def test_good_answers_come_whole(server):
    kinds = ("ok/1", "chunks/1", "gzip/1", "cookie/1", "redirect/1", "redirect/3", "nofollow/1")
    assert [answer.data for answer in fetch([server.url(kind) for kind in kinds])] == [PICTURE] * 7
    assert server.agents == {DownloadOptions().user_agent}
    assert fetch([server.url("html/1")])[0].data == HTML  # whether it is an image is asked later


FAULTS = {  # path → reason, again, requests with two retries
    "404/a": ("not found", False, 1),
    "410/a": ("not found", False, 1),
    "403/a": ("status 4xx", False, 1),
    "300/a": ("status 3xx", False, 1),
    "500/a": ("status 5xx", True, 3),
    "503/a": ("status 5xx", True, 3),
    "429/a": ("too many requests", True, 3),
    "429-then-good/a": ("", False, 2),
    "500-then-good/a": ("", False, 2),
    "reset-then-good/a": ("", False, 2),
    "truncated/a": ("truncated", True, 3),
    "truncated-chunks/a": ("truncated", True, 3),
    "slow/a": ("timed out", True, 1),
    "silent/a": ("timed out", True, 1),
    "endless/a": ("too many bytes", False, 1),
    "announced/a": ("too many bytes", False, 1),
    "bomb/a": ("too many bytes", False, 1),
    "empty/a": ("empty", False, 1),
    "noai/a": ("X-Robots-Tag forbids", False, 1),
    "garbage/a": ("connection failed", False, 1),
    "redirect/4": ("too many redirects", False, 1),
    "loop/a": ("too many redirects", False, 4),
    "to/file%3A%2F%2F%2Fetc%2Fpasswd": ("not http(s)", False, 1),
    "to/http%3A%2F%2Fme%3Ame%40localhost%2F": ("bad URL", False, 1),
    "to/http%3A%2F%2F": ("too many redirects", False, 4),  # the same place once more
    "to/http%3A%2F%2F%5B": ("bad URL", False, 1),
}


def test_every_fault_has_its_reason(monkeypatch):
    monkeypatch.setattr(crawl, "MAX_BYTES", 1_000_000)
    with serving(pictures=[PICTURE]) as server:
        urls = [server.url(path) for path in FAULTS]
        answers = fetch(urls, timeout=2.0, retries=2)
        requests = [server.requests[URL(url).raw_path] for url in urls]
    found = {
        path: (answer.reason, answer.again, count)
        for path, answer, count in zip(FAULTS, answers, requests, strict=True)
    }
    assert found == FAULTS


def test_a_length_that_is_too_short_gives_no_picture(server):
    answer = fetch([server.url("short/1")])[0]
    assert answer.reason == "connection failed" or answer.data == PICTURE[:3]


def test_a_server_without_http_or_without_tls_is_no_fault_of_ours(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    urls = [f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{server.port}/ok/1"]
    answers = fetch(urls, retries=0)
    assert [answer.reason for answer in answers] == ["connection failed"] * 2
    assert answers[0].again


def test_cookies_credentials_and_proxies_stay_out(server, names, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine pictures.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    names["pictures.test"] = ["127.0.0.1"]
    urls = [server.url(path, "pictures.test") for path in ("cookie/2", "ok/after", "ok/later")]
    answers = fetch(urls, connections_per_host=1)
    assert [answer.data for answer in answers] == [PICTURE] * 3
    assert server.headers["host"].startswith("pictures.test")
    assert not {"cookie", "authorization", "referer"} & set(server.headers)
    assert server.headers["accept-encoding"] == "identity"


def test_a_bomb_takes_no_memory(monkeypatch):
    monkeypatch.setattr(crawl, "MAX_BYTES", 2_000_000)
    with serving() as server:
        tracemalloc.start()
        try:
            assert reasons([server.url("bomb/1")], robots=False) == ["too many bytes"]
            assert tracemalloc.get_traced_memory()[1] < 20_000_000  # of ten billion
        finally:
            tracemalloc.stop()


# --- what must not be reached


def hostile(port):
    """URLs that lead inside, or nowhere; with `port` where a server listens on loopback."""
    inside = [
        "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.255.255.254", "0", "0.0.0.0",
        "2130706433", "017700000001", "0177.0.0.1", "0x7f000001", "0x7f.0.0.1", "0x7F.1",
        "127.0.0.01", "00000127.0.0.1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1",
        "%31%32%37.0.0.1", "localhost", "LOCALHOST", "localhost.", "ｌocalhost",
        "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::127.0.0.1]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]",
        "[64:ff9b:1::127.0.0.1]", "[2001:0:7f00:1::80ff:fffe]", "[fe80::1%25lo]", "[::1%25lo]",
        "example.com@127.0.0.1", "127.0.0.1#@example.com", "127.0.0.1\\@example.com",
        "inside.test", "mixed.test", "mixed6.test", "mapped.test",
    ]  # fmt: skip
    other = [
        "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "100.64.0.1", "192.0.0.192",
        "168.63.129.16", "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
        "255.255.255.255", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]",
        "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "3232235777", "0xa9fea9fe",
        "metadata.test", "link.test",
    ]  # fmt: skip
    schemes = [
        "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1/x.jpg",
        "gopher://127.0.0.1:{port}/_GET", "data:image/png;base64,AAAA", "javascript:alert(1)",
        "dict://127.0.0.1:{port}/x", "//127.0.0.1:{port}/x.jpg", "127.0.0.1:{port}/x.jpg",
        "http:/127.0.0.1:{port}/x", "http:127.0.0.1:{port}", "http:///x.jpg", "http://", "",
        "unix:/run/docker.sock", "http://u:p@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/",
        "http://8.8.8.8:22/", "http://8.8.8.8:6379/", "http://[2606:4700::1111]:25/",
        "http://127.0.0.1:0/", "http://127.0.0.1:99999/", "http://127.0.0.1:{port}/\r\nHost: x",
    ]  # fmt: skip
    return [
        *(f"http://{host}:{port}/x.jpg" for host in inside),
        *(f"{scheme}://{host}/x.jpg" for host in inside + other for scheme in ("http", "https")),
        *(text.replace("{port}", str(port)) for text in schemes),
    ]


HOSTILE_NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "inside.test": ["127.0.0.1"],
    "mixed.test": ["93.184.215.14", "127.0.0.1"],
    "mixed6.test": ["93.184.215.14", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "link.test": ["fe80::1%lo"],
}


@pytest.mark.parametrize("robots", [True, False])
def test_hostile_urls_make_no_connection(connects, names, robots):
    names.update(HOSTILE_NAMES)
    hosts = ["127.0.0.1", "127.255.255.254"] + ["::1"] * socket.has_dualstack_ipv6()
    with serving(hosts) as server:
        urls = hostile(server.port)
        answers = fetch(urls, allow_networks=(), robots=robots, retries=1)
        assert server.accepted == {}
    assert connects == []
    assert len(urls) >= 150
    allowed = {"address not allowed", "bad URL", "not http(s)", "host not found"}
    assert {answer.reason for answer in answers} == allowed
    by_url = {url: answer.reason for url, answer in zip(urls, answers, strict=True)}
    for host in ("127.0.0.1", "2130706433", "0x7f.0.0.1", "localhost", "[::1]", "mixed.test"):
        assert by_url[f"http://{host}:{server.port}/x.jpg"] == "address not allowed"


def test_sockets_are_guarded_even_if_all_else_fails(connects, names, monkeypatch):
    names.update(HOSTILE_NAMES)
    monkeypatch.setattr(Guard, "check_url", lambda guard, url: None)
    urls = ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://10.0.0.1/"]
    assert reasons(urls, allow_networks=(), retries=0) == ["address not allowed"] * 4
    assert connects == []


INWARD = (
    "http://127.0.0.2:{port}/ok/1", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/",
    "http://[::1]:{port}/", "http://0x7f000002:{port}/", "http://2130706434:{port}/",
    "//127.0.0.2:{port}/ok/1", "http://inside.test:{port}/ok/1", "http://[::ffff:127.0.0.2]:{port}/",
)  # fmt: skip


@pytest.mark.parametrize("robots", [True, False])
def test_redirects_to_private_places_are_not_followed(connects, names, robots):
    names["inside.test"] = ["127.0.0.2"]
    with serving(["127.0.0.1", "127.0.0.2"]) as server:
        targets = [text.replace("{port}", str(server.port)) for text in INWARD]
        urls = [server.url("to/" + urllib.parse.quote(target, safe="")) for target in targets]
        found = reasons(urls, allow_networks=("127.0.0.1/32",), robots=robots)
        assert server.accepted.keys() == {"127.0.0.1"}
    assert found == ["address not allowed"] * len(INWARD)
    assert set(connects) == {"127.0.0.1"}


def test_a_robots_txt_must_not_lead_inside_either(connects):
    with serving(["127.0.0.1", "127.0.0.2"]) as server:
        target = urllib.parse.quote(server.url("ok/1", "127.0.0.2"), safe="")
        server.robots = f"to/{target}"
        assert (
            reasons([server.url("ok/1")] * 3, allow_networks=("127.0.0.1/32",))
            == ["address not allowed"] * 3
        )
    assert set(connects) == {"127.0.0.1"}


def test_a_name_that_changes_its_address_is_caught(connects, names):
    names["rebind.test"] = [["93.184.215.14"], ["127.0.0.1"]]
    with serving() as server:
        for changes in ({}, {"robots": False}):
            url = "http://rebind.test:8080/x.jpg"
            answers = fetch([url], allow_networks=(), retries=3, **changes)
            assert answers[0].reason in ("address not allowed", "connection failed")
        assert server.accepted == {}
    assert connects and set(connects) == {"93.184.215.14"}


def test_the_checked_address_is_the_one_connected_to(connects, names, server):
    names["pictures.test"] = [["127.0.0.1"], ["10.0.0.1"]]
    url = f"http://pictures.test:{server.port}/ok/1"
    assert fetch([url])[0].data == PICTURE
    assert set(connects) == {"127.0.0.1"}
    assert server.headers["host"] == f"pictures.test:{server.port}"


def test_named_networks_only_open_themselves(server):
    assert reasons([server.url("ok/1")], allow_networks=("10.0.0.0/8", "::1/128")) == [
        "address not allowed"
    ]


PUBLIC = ("8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "2a00:1450:4009::1")
PRIVATE = (
    "0.0.0.0", "10.0.0.1", "127.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.8",
    "192.168.0.1", "198.18.0.1", "198.51.100.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::",
    "::1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1",
    "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fe80::1", "fec0::1", "ff0e::1",
)  # fmt: skip


def test_which_addresses_are_public():
    assert [text for text in PUBLIC if not is_public(ipaddress.ip_address(text))] == []
    assert [text for text in PRIVATE if is_public(ipaddress.ip_address(text))] == []


def test_an_address_within_an_address_counts():
    guard = Guard([ipaddress.ip_network("10.0.0.0/8")])
    for good in ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "::ffff:10.0.0.1", "10.1.2.3"):
        guard.check(good, 443)
    guard.check("10.1.2.3", 9000)  # a named network may use any port
    for bad in ("::ffff:127.0.0.1", "64:ff9b::192.168.0.1", "2002:a00:1::", "11.0.0.1%eth0"):
        with pytest.raises((PermissionError, ValueError)):
            guard.check(bad, 443)
    with pytest.raises(PermissionError):
        guard.check("8.8.8.8", 25)


def test_urls_are_read_in_one_way():
    assert str(parse_url(" \tHTTP://Example.COM/a b.jpg\n")) == "http://example.com/a%20b.jpg"
    assert parse_url("http://città.it/è.jpg").raw_host == "xn--citt-3na.it"
    base = parse_url("http://a.it/x/y")
    assert str(parse_url("../z", base)) == "http://a.it/z"
    for text in ("http://a.it/" + "x" * 9000, "http://\ud800.it/", "http://[::1/", "http://a@b.it"):
        with pytest.raises(DownloadError, match="bad URL"):
            parse_url(text)


def test_no_text_at_all_raises(connects, names):
    rng = random.Random(0)
    alphabet = "ab1.:/@%#?[]\\ \t\n\r\0-_~é日𝔸ß\u202e\ud800\udfff\uff0e。①+*$&'\"<>{}|^`,;=!()xn--"
    pieces = ["http://", "https://", "http:", "//", "@", ":80", ":-1", ":99999999999", "[::1]",
              "[v1.x]", "127.0.0.1", "0x7f", "xn--", "xn--a", "%00", "%zz", "..", "a" * 300,
              "http://a.b/", "?" * 50, "\N{COMBINING ACUTE ACCENT}", "1" * 5000]  # fmt: skip
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(20))) for _ in range(200)]
    texts += ["http://" + text for text in texts]
    texts += ["".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(300)]
    texts += ["http://" + "".join(rng.choices(pieces, k=3)) for _ in range(100)]
    answers = fetch(texts, allow_networks=(), retries=0)
    assert {answer.reason for answer in answers} <= REASONS - {""}
    assert len(texts) == 800 and set(connects) <= {"93.184.215.14"}


# --- politeness


def test_robots_txt_is_asked_once_and_followed(server):
    text = "User-agent: *\nDisallow: /ok/private\n\nUser-agent: other\nDisallow: /\n"
    with serving(["127.0.0.1", "127.0.0.2"], robots={"127.0.0.1": text}) as server:
        paths = ["ok/private1", "ok/public", *(f"ok/{n}" for n in range(20))]
        urls = [server.url(path, host) for path in paths for host in server.hosts]
        found = dict(zip(urls, reasons(urls), strict=True))
        assert server.requests["/robots.txt"] == 2  # one for each host
        assert server.requests["/ok/private1"] == 1
        assert [url for url, reason in found.items() if reason] == [server.url("ok/private1")]
        assert found[server.url("ok/private1")] == "robots.txt forbids"
        assert reasons([server.url("ok/private1"), server.url("noai/1")], robots=False) == ["", ""]


def test_a_redirect_asks_the_robots_txt_of_its_target():
    with serving(["127.0.0.1", "127.0.0.2"]) as server:
        server.robots = {"127.0.0.2": "User-agent: clip-italian\nDisallow: /\n"}
        target = urllib.parse.quote(server.url("ok/1", "127.0.0.2"), safe="")
        assert reasons([server.url(f"to/{target}")]) == ["robots.txt forbids"]


@pytest.mark.parametrize(
    ("robots", "reason", "again"),
    [
        ("404", "", False),
        ("403", "", False),
        ("empty", "", False),
        ("html", "", False),
        ("loop", "", False),
        ("503", "robots.txt forbids", True),
        ("429", "robots.txt forbids", True),
        ("silent", "robots.txt forbids", True),
        ("truncated", "robots.txt forbids", True),
        ("reset", "connection failed", True),
        ("endless", "", False),
    ],
)
def test_a_robots_txt_that_cannot_be_read(robots, reason, again):
    with serving(robots=robots) as server:
        answers = fetch([server.url(f"ok/{n}") for n in range(5)], timeout=1.0, retries=1)
        assert {(answer.reason, answer.again) for answer in answers} == {(reason, again)}
        assert server.requests["/robots.txt"] <= 6  # not once for each picture


def test_a_slow_robots_txt_holds_up_nobody_else():
    with serving(["127.0.0.1", "127.0.0.2"], robots={"127.0.0.1": "silent"}) as server:
        slow = [server.url(f"ok/{n}") for n in range(40)]
        quick = [server.url(f"ok/{n}", "127.0.0.2") for n in range(30)]
        found = list(download(slow + quick, options(connections=4, timeout=2.0)))
        assert [answer.reason for answer in found] == [""] * 30 + ["robots.txt forbids"] * 40


def test_one_host_gets_few_connections():
    with serving(pause=0.05) as server:
        fetch([server.url(f"ok/{n}") for n in range(24)], connections_per_host=3, connections=20)
        assert server.peak["127.0.0.1"] == 3


def test_redirects_from_many_hosts_keep_to_the_limit_of_one():
    hosts = [f"127.0.0.{n}" for n in range(1, 8)]
    with serving(hosts, pause=0.05) as server:
        target = server.url("ok/{}", hosts[0])
        paths = ["to/" + urllib.parse.quote(target.format(n), safe="") for n in range(18)]
        urls = [server.url(path, hosts[1 + n % 6]) for n, path in enumerate(paths)]
        assert set(reasons(urls, connections_per_host=2, robots=False)) == {""}
        assert server.peak["127.0.0.1"] == 2


def test_retry_after_holds_for_the_whole_host():
    with serving(retry_after="1") as server:
        urls = [server.url(path) for path in ("429-then-good/1", *(f"ok/{n}" for n in range(5)))]
        start = time.monotonic()
        assert reasons(urls, connections_per_host=1) == [""] * 6
        assert 1.0 <= time.monotonic() - start < 10.0
        first, second = sorted(when for when, path in server.finished if path == "/429-then-good/1")
        assert second - first >= 0.99
        assert not [path for when, path in server.finished if first < when < first + 0.99]


def test_a_long_retry_after_is_cut(monkeypatch):
    monkeypatch.setattr(crawl, "_RETRY_AFTER_MAX_SECONDS", 0.05)
    for text in ("86400", "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "nonsense", "9" * 5000):
        with serving(retry_after=text) as server:
            assert reasons([server.url("429-then-good/1")]) == [""]


def test_a_host_that_is_down_is_given_up():
    with serving() as server:
        answers = fetch([server.url(f"500/{n}") for n in range(200)], retries=0)
        assert {answer.reason for answer in answers} == {"status 5xx"}
        assert all(answer.again for answer in answers)
        assert server.requests.total() < 40
        assert sum("given up" in answer.detail for answer in answers) > 160


def test_what_the_header_forbids():
    for value in ("noai", "NoImageAI", "noindex, nofollow", "all,noimageindex", "none",
                  "clip-italian: noai", "other: nofollow, clip-italian: noindex",
                  "max-snippet: -1, noindex", "unavailable_after: 1 Jan 2030, noai"):  # fmt: skip
        assert header_forbids([value], "clip-italian"), value
    for value in ("", "all", "nofollow", "other: noindex, noai", "noarchive, nosnippet"):
        assert not header_forbids([value], "clip-italian"), value
    assert header_forbids(["all", "noai"], "clip-italian")


def test_names_in_robots_txt():
    assert product("My-Bot/2.0 (+https://example.com)") == "my-bot"
    rules = parse_robots(
        b"\xef\xbb\xbfUser-agent: Clip-Italian\nDisallow: /a\n\nUser-Agent: *\nDisallow: /b\n"
        b"user agent: zed # c\nDisallow: /c\nUseragent : \xff\nDisallow: /d",
        "clip-italian",
    )
    allowed = [rules.can_fetch(f"http://x.it/{path}", "clip-italian") for path in "abcd"]
    assert allowed == [False, True, True, True]


def test_a_hostile_robots_txt_is_read_quickly():
    names = "".join(f"User-agent: {'*' * (n % 90)}a{n}\n" for n in range(3000))
    text = names + "".join(f"Disallow: /{n}*$\n" for n in range(8000))
    start = time.process_time()
    assert parse_robots(text.encode(), "clip-italian").can_fetch("http://x.it/1", "clip-italian")
    assert time.process_time() - start < 5


# --- the iterator


def test_memory_is_bounded_while_the_caller_is_slow():
    with serving(["127.0.0.1", "127.0.0.2"], pictures=[bytes(1000) + b"x"]) as server:
        urls = [server.url(f"ok/{n}", host) for n in range(20) for host in server.hosts]
        answers = download(urls, options(connections=4, robots=False))
        assert next(answers).data
        time.sleep(0.4)
        assert server.requests.total() <= 1 + 4  # one is with the caller
        assert len(list(answers)) == 39
        assert server.requests.total() == 40


def test_closing_ends_everything():
    before = threading.active_count()
    with serving() as server:
        urls = [server.url(path) for path in ("ok/1", *(f"silent/{n}" for n in range(30)))]
        answers = download(urls, options(timeout=60.0, connections_per_host=64))
        assert next(answers).reason == ""
        start = time.monotonic()
        answers.close()
        assert time.monotonic() - start < 10
        assert not [thread for thread in threading.enumerate() if thread.name == "download"]
        time.sleep(0.2)
        assert server.open == 0
    assert threading.active_count() <= before
    download(["http://127.0.0.1/"], options()).close()  # never started


def test_nothing_to_do():
    assert list(download([], options())) == []


def test_a_fault_of_our_own_is_raised(monkeypatch, server):
    def broken(*args, **more):
        raise ZeroDivisionError

    monkeypatch.setattr(crawl, "retry_after", broken)
    monkeypatch.setattr(crawl, "explain", broken)
    with pytest.raises(BaseExceptionGroup):
        list(download([server.url("ok/1")], options(robots=False)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connections", 0), ("connections_per_host", 0), ("retries", -1), ("timeout", 0.0),
        ("timeout", float("nan")), ("timeout", float("inf")), ("user_agent", ""),
        ("user_agent", "a\r\nb"),
        ("allow_networks", ("10.0.0.1/8",)), ("allow_networks", ("intranet",)),
    ],
)  # fmt: skip
def test_bad_options_are_refused_at_once(field, value):
    with pytest.raises(ConfigError, match=field):
        download([], options(**{field: value}))
