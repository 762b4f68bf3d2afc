"""Fetching, against a server on this machine: resumed, retried, told; origin and licence reach the records."""

import http.server
import json
import threading
import time

import pytest

from engine.corpus import collect
from engine.corpus.prepare import Request, run
from engine.corpus.records import read
from engine.settings import ConfigError

ARTICLE = '<article xmlns:xlink="x"><front><article-meta><title-group><article-title>Title {}</article-title></title-group><permissions><license xlink:href="https://cc/by"/></permissions><abstract><p>Short.</p></abstract></article-meta></front><body><p>Long text {}.</p></body></article>'
OAI = "<OAI-PMH><record><arXiv><title>T</title><license>https://l</license><abstract> An\n abstract. </abstract></arXiv></record></OAI-PMH>"
PAGE = '<html><head><title>A talk</title></head><body><video src="/v.mp4"><track kind="subtitles" srclang="en" src="/v.vtt"></video></body></html>'
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\nHello there.\n"


@pytest.fixture
def server():
    """(address, paths asked for). /busy answers 503 once; /gone 404."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            if name == "5" and asked.count(self.path) == 1:
                self.send_response(503)
                self.send_header("Retry-After", "0")
                self.end_headers()
                return
            body = {"7": "", "8": "<oops/>", "2101.00001": OAI, "2101.00002": "<a><error>none such</error></a>", "page": PAGE, "bare": "<html></html>", "v.vtt": VTT}.get(name, ARTICLE.format(name, name)).encode()  # fmt: skip
            self.send_response(404 if name == "7" else 200)
            self.send_header(
                "Content-Type",
                {"page": "text/html", "bare": "text/html", "v.vtt": "text/vtt", "v.mp4": "video/mp4"}.get(
                    name, "text/xml"
                ),
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET

        def log_message(self, *_): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()


def fetch(server, kind, wanted, folder, **options):
    said: list[str] = []
    place = f"{server[0]}/x/{{id}}"
    return collect.run(kind, wanted, folder, said.append, **({"place": place, "pause": 0} | options)), said


def test_articles_are_fetched_once_and_failures_are_told(tmp_path, server):
    report, said = fetch(server, "pmc", ["1", "7", "8", "2"], tmp_path)
    assert (report.fetched, report.present, sorted(report.failed)) == (2, 0, ["7", "8"])
    assert "404" in report.failed["7"] and "XML of another kind" in report.failed["8"] and len(said) == 4
    server[1].clear()
    report, _ = fetch(server, "pmc", ["1", "2", "3"], tmp_path)
    assert (report.fetched, report.present) == (1, 2) and server[1] == ["/x/3"]


def test_a_file_that_is_cut_or_gone_is_fetched_again(tmp_path, server):
    fetch(server, "pmc", ["1", "2"], tmp_path)
    (tmp_path / "PMC1.xml").write_text("cut")
    with (tmp_path / collect.MANIFEST).open("ab") as file:
        file.write(b'{"id": "3", "kind"')  # as a crash leaves it
    assert fetch(server, "pmc", ["1", "2", "3"], tmp_path)[0].fetched == 2
    assert sorted(entry["id"] for entry in collect.manifest(tmp_path).values()) == ["1", "2", "3"]


def test_a_busy_server_is_asked_again_and_a_pause_is_kept(tmp_path, server):
    started = time.monotonic()
    assert fetch(server, "pmc", ["5", "6"], tmp_path, pause=0.2)[0].fetched == 2
    assert server[1].count("/x/5") == 2 and time.monotonic() - started >= 0.4


def test_origin_and_licence_reach_the_records(tmp_path, server):
    fetch(server, "pmc", ["1"], tmp_path)
    fetch(server, "arxiv", ["2101.00001", "2101.00002"], tmp_path)
    report = run(Request((tmp_path,), "documents", tmp_path / "o.jsonl"), lambda line: None)
    records = {record.id: record for record in read(tmp_path / "o.jsonl", need_summary=False)}
    assert report.written == 2
    assert (
        records["PMC1"].origin == "https://www.ncbi.nlm.nih.gov/pmc/articles/PMC1/"
        and records["PMC1"].licence == "https://cc/by"
    )
    assert records["arxiv-2101.00001"].source == "An abstract." and records["arxiv-2101.00001"].licence == "https://l"


def test_subtitles_of_a_page(tmp_path, server):
    report, said = fetch(server, "subtitles", [f"{server[0]}/page", f"{server[0]}/bare"], tmp_path)
    assert report.fetched == 1 and list(report.failed) == [f"{server[0]}/bare"], said
    run(Request((tmp_path,), "videos", tmp_path / "o.jsonl"), lambda line: None)
    (record,) = read(tmp_path / "o.jsonl", need_summary=False)
    assert record.source == "Hello there." and record.origin == f"{server[0]}/page" and not list(tmp_path.glob(".sub*"))


def test_lists_of_ids(tmp_path):
    (tmp_path / "ids.txt").write_text("# mine\nPMC12\n\n12\n13\n")
    assert collect.ids([str(tmp_path / "ids.txt"), "pmc99"], "pmc") == ["12", "13", "99"]
    assert collect.ids(["arXiv:2101.00001v2", "math/0309136"], "arxiv") == ["2101.00001v2", "math/0309136"]
    with pytest.raises(ConfigError, match="line 1: 'oops' is no id of pmc"):
        (tmp_path / "bad.txt").write_text("oops\n")
        collect.ids([str(tmp_path / "bad.txt")], "pmc")
    with pytest.raises(ConfigError, match="is no address"):
        collect.ids(["file:///etc/passwd"], "subtitles")


def test_the_manifest_is_one_object_a_line(tmp_path, server):
    fetch(server, "pmc", ["1"], tmp_path)
    (line,) = (tmp_path / collect.MANIFEST).read_text().splitlines()
    entry = json.loads(line)
    assert (
        entry["file"] == "PMC1.xml"
        and entry["bytes"] == (tmp_path / "PMC1.xml").stat().st_size
        and entry["licence"] == "https://cc/by"
    )
