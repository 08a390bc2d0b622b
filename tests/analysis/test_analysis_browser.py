"""The report in a real browser (Debian's Chromium): no console error, nothing fetched, summary.json's numbers."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from records import World, make_trial, publish
from reports import EVIL, Page, trials_of

from analysis.report.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.needs_root,
              pytest.mark.skipif(CHROMIUM is None, reason="no browser here (Debian: apt-get install chromium)")]
# Run inside the page, after its own script: sort by the second column, hover a mark, say what happened.
DRIVER = """<script>
const header = document.querySelectorAll("#table-curve th")[1];
const column = () => Array.from(document.querySelectorAll("#table-curve tbody tr"), (row) => row.cells[1].textContent);
const seen = {before: column()};
header.querySelector("button").click(); seen.up = column();
header.querySelector("button").click(); seen.down = column();
const mark = document.querySelector("#figure-curve g.hover");
mark.dispatchEvent(new PointerEvent("pointermove", {clientX: 50, clientY: 50}));
seen.tip = document.getElementById("tip").textContent;
seen.shown = !document.getElementById("tip").hidden;
const out = document.createElement("pre");
out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
</script>"""


class Server(ThreadingHTTPServer):
    """Serves one folder and remembers what was asked for."""

    def __init__(self, folder):
        self.asked = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                super().do_GET()

            def log_message(self, *arguments):
                pass

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))


def open_page(folder, name, tmp_path):
    """(the DOM after all scripts, console messages, paths that the browser asked for)."""
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr",
             "--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/{name}"],
            capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    return done.stdout, re.findall(r":CONSOLE.*", done.stderr), server.asked


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    world = World(rows=150)
    world.names = [EVIL, "good"]
    publish(folder, trials_of(world))
    publish(folder, [make_trial(world, strategy="lp_ft:1", skill=1.4, seed=seed, learning_rate=5e-5, phase=phase)
                     for phase, seeds in (("tune", (1, 2)), ("confirm", range(3, 9))) for seed in seeds])
    report = write_report([str(folder)])
    page = report.folder / "report.html"
    (report.folder / "driven.html").write_text(page.read_text().replace("</body>", DRIVER + "</body>"))
    tmp = tmp_path_factory.mktemp("chromium")
    return {name: open_page(report.folder, f"{name}.html", tmp / name) for name in ("report", "driven")} | {
        "summary": json.loads((report.folder / "summary.json").read_text())}


def test_no_console_message_and_nothing_fetched(opened):
    dom, console, asked = opened["report"]
    assert "Before you read the curve" in dom
    assert console == []
    assert asked == ["/report.html"]


def test_the_numbers_on_the_page_are_those_of_summary_json(opened):
    page = Page(opened["report"][0])
    summary = opened["summary"]
    assert json.loads(page.texts["summary"]) == summary
    assert page.texts["answer"] == summary["headline"]
    values = {value for value, _ in page.cells if value}
    for entry in summary["curve"]:
        assert {str(entry[name]) for name in ("estimate", "low", "high")} <= values
    for comparison in summary["comparisons"]:
        assert str(comparison["difference"]) in values


def test_tables_sort_and_marks_tell_their_value(opened):
    dom, console, _ = opened["driven"]
    seen = json.loads(Page(dom).texts["seen"])
    assert console == []
    numbers = [float(text) for text in seen["up"]]
    assert numbers == sorted(numbers) and seen["down"] == seen["up"][::-1]
    assert sorted(seen["before"]) == sorted(seen["up"])
    assert seen["shown"] and re.search(r"full fine-tuning.*: \d+\.\d%", seen["tip"])


def test_a_page_that_fetches_or_fails_would_be_noticed(tmp_path):
    """The two tests above can fail: a broken page is reported by the same means."""
    (tmp_path / "bad.html").write_text('<html><body><img src="/x.png"><script>nothing()</script></body></html>')
    _, console, asked = open_page(tmp_path, "bad.html", tmp_path)
    assert "/x.png" in asked and any("nothing is not defined" in message for message in console)
