"""Which releases there are: from indexes of either kind on this machine, and from folders."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.releases.index import Release, _has_no_such_package, chosen, releases, without_password
from pytest_memleak.releases.planning import between
from pytest_memleak.releases.sources import PYPI, Sources, _parsed, sources

FILES: list[dict[str, object]] = [
    {"filename": "some_lib-1.0-py3-none-any.whl"},
    {"filename": "some_lib-1.1-py3-none-any.whl", "yanked": "it deletes files"},
    {"filename": "some-lib-1.1.tar.gz", "yanked": True},
    {"filename": "some-lib-1.2.tar.gz", "yanked": False},
    {"filename": "some_lib-1.2-py3-none-any.whl", "yanked": "only the wheel"},
    {"filename": "some_lib-1.10.0-py3-none-any.whl", "requires-python": ">=3.8"},
    {"filename": "some_lib-1.10.1-py3-none-any.whl", "requires-python": ">=3.8,<4"},
    {"filename": "some_lib-2.0rc1-py3-none-any.whl"},
    {"filename": "some_lib-3.0-py3-none-any.whl", "requires-python": ">=99"},
    {"filename": "some_lib-1.0-py3.7.egg"},
    {"filename": "some_lib_extra-9.0-py3-none-any.whl"},
]
HTML = "".join(
    f'<a href="../../f/{one["filename"]}#sha256=0"'
    f"{' data-yanked' if one.get('yanked') else ''}"
    f' data-requires-python="{str(one.get("requires-python", "")).replace(">", "&gt;").replace("<", "&lt;")}">x</a>'
    for one in FILES
)


@pytest.fixture(params=["json", "html"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            as_json = request.param == "json" and "vnd.pypi.simple.v1+json" in self.headers["Accept"]
            there = self.path == "/simple/some-lib/" and self.headers.get("Authorization") in (
                None,
                "Basic bWU6bXkgd29yZA==",
            )
            body = (json.dumps({"files": FILES}) if as_json else HTML).encode()
            self.send_response(200 if there else 500 if "broken" in self.path else 404)
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json" if as_json else "text/html")
            self.end_headers()
            self.wfile.write(body if there else b"")

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}/simple"
    served.shutdown()
    served.server_close()


def test_releases_of_an_index(server: str) -> None:
    found = releases("Some.Lib", Sources((server,)))
    assert [(str(one), one.yanked) for one in found] == [
        ("1.0", False),
        ("1.1", True),
        ("1.2", False),
        ("1.10.0", False),
        ("1.10.1", False),
        ("2.0rc1", False),
    ]


def test_credentials_go_into_the_request_and_into_no_message(server: str) -> None:
    with_password = server.replace("//", "//me:my%20word@") + "/"
    assert len(releases("some-lib", Sources((with_password,)))) == 6
    with pytest.raises(Unavailable, match="it has no such package") as caught:
        releases("other-lib", Sources((with_password,)))
    assert "word" not in str(caught.value)
    assert without_password("https://a/simple") == "https://a/simple"


def test_folders_and_indexes_that_are_files_add_up(tmp_path: Path) -> None:
    page = tmp_path / "simple" / "some-lib" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(HTML)
    links = tmp_path / "links"
    links.mkdir()
    (links / "some_lib-0.9+cpu-py3-none-any.whl").touch()
    where = Sources((page.parents[1].as_uri(), str(tmp_path / "nothing")), (str(links),))
    assert [str(one) for one in releases("some-lib", where)][:2] == ["0.9+cpu", "1.0"]


def test_no_releases_at_all_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no releases of 'some-lib' are known: .*nothing: it has no such package"):
        releases("some-lib", Sources((f"{tmp_path}/nothing",)))
    with pytest.raises(Unavailable, match="neither an index nor a folder"):
        releases("some-lib", Sources(()))


def known(*versions: str, yanked: str = "") -> list[Release]:
    from packaging.version import Version

    return [Release(Version(one), one == yanked) for one in versions]


def test_what_a_specifier_chooses() -> None:
    have = known("1.0", "1.1", "1.1.1", "1.2rc1", "1.2", "2.0", yanked="1.1.1")
    assert [str(one) for one in chosen(have, ">=1.1,<2")] == ["1.1", "1.2"]
    assert [str(one) for one in chosen(have, ">=1.1,<2", yanked=True, pre=True)] == ["1.1", "1.1.1", "1.2rc1", "1.2"]
    assert [str(one) for one in chosen(have, "<2", minors=True, yanked=True)] == ["1.0", "1.1.1", "1.2"]
    with pytest.raises(BadInput, match="'newest' is no specifier"):
        chosen(have, "newest")


def test_the_ends_of_a_search_are_taken_whatever_they_are() -> None:
    have = known("1.0rc1", "1.0", "1.1", "1.2", "1.3.dev1", yanked="1.1")
    assert between(have, "1.0rc1", "1.3.dev1", pre=False, yanked=False) == ["1.0rc1", "1.0", "1.2", "1.3.dev1"]
    assert between(have, "1.2", "1.0", pre=False, yanked=True) == ["1.0", "1.1", "1.2"]


def test_between_goes_by_order_and_not_by_what_a_specifier_leaves_out() -> None:
    have = known("1.0", "1.0.post1", "1.5", "2.0rc1", "2.0")
    assert between(have, "1.0", "2.0", pre=True, yanked=False) == ["1.0", "1.0.post1", "1.5", "2.0rc1", "2.0"]
    assert between(have, "1.0", "2.0", pre=False, yanked=False) == ["1.0", "1.0.post1", "1.5", "2.0"]


def test_builds_of_one_release_for_other_cards_are_not_releases_between() -> None:
    have = known("2.11", "2.11+cpu", "2.12", "2.12+cpu", "2.12+cu126", "2.13", "2.13+cpu", "2.13+cu126")
    assert between(have, "2.11", "2.13", pre=False, yanked=False) == ["2.11", "2.12", "2.13"]
    assert between(have, "2.11+cpu", "2.13+cpu", pre=False, yanked=False) == ["2.11+cpu", "2.12+cpu", "2.13+cpu"]
    assert between(have, "2.12+cpu", "2.13+cpu", pre=False, yanked=False) == ["2.12+cpu", "2.13+cpu"]
    with pytest.raises(BadInput, match=r"between 2.11 and 2.13 there are only other builds, such as 2.12\+cpu"):
        between(known("2.12+cpu"), "2.11", "2.13", pre=False, yanked=False)


def test_a_place_that_does_not_answer_is_not_passed_over(server: str, tmp_path: Path) -> None:
    nobody = "http://me:word@127.0.0.1:1/simple"
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1/simple could not be asked .*'some-lib'"):
        releases("some-lib", Sources((server, nobody)))
    with pytest.raises(Unavailable, match="could not be asked"):
        releases("some-lib", Sources((server,), certificates=str(tmp_path / "gone.pem")))
    with pytest.raises(Unavailable, match="could not be asked"):
        releases("some-lib", Sources((server.replace("//", "//me:wrong@").replace("/simple", "/broken"),)))
    assert releases("some-lib", Sources((server,), (str(tmp_path / "nothing"),)))


def test_the_index_of_pytorch_says_in_its_own_way_that_it_has_none() -> None:
    def forbidden(place: str) -> bool:
        return _has_no_such_package(HTTPError(place, 403, "Forbidden", Message(), None), place)

    assert forbidden("https://download.pytorch.org/whl/cpu")
    assert not forbidden("https://packages.example/simple")


def test_pips_own_configuration_is_used_unless_uv_has_been_told() -> None:
    said = _parsed(
        "global.find-links='/some/wheels'\nglobal.extra-index-url='file:///a file:///b'\ninstall.index-url='https://c'\n"
        "global.index-url='https://d'\nglobal.odd=what?\n:env:.find-links='/other'\n"
    )
    assert said == {"find-links": "/other", "extra-index-url": "file:///a file:///b", "index-url": "https://c"}
    assert sources({}, said).arguments() == [
        *("--find-links", "/other", "--default-index", "https://c", "--index", "file:///a", "--index", "file:///b"),
        *("--index-strategy", "unsafe-best-match"),
    ]
    assert sources({}, {"no-index": "1", "find-links": "/w"}).arguments() == ["--no-index", "--find-links", "/w"]
    assert sources({}, {}).arguments() == []
    told = sources({"UV_INDEX": "mine=https://e https://f?a=b", "UV_FIND_LINKS": "/x,/y"}, said)
    assert told.arguments() == []
    assert (told.indexes, told.find_links) == ((PYPI, "https://e", "https://f?a=b"), ("/x", "/y"))
