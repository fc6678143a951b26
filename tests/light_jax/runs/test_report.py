"""report.html: one file that tells the run's own numbers, whatever its texts contain."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from tiny_runs import command, metrics, train_command, write_config

from light_jax.config import load_config
from light_jax.data import TokenStream
from light_jax.runs import notes
from light_jax.runs.facts import Facts, parameters_of, settings_of
from light_jax.runs.history import History
from light_jax.runs.report import Now, render

HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)> & \x1b[31m \u202e"
STEPS = {"num_steps": 60, "eval_every": 10, "save_every": 20, "eval_steps": 2}


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, and the text of cells."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data

    def value(self, key):
        (found,) = (a["data-value"] for _, a in self.elements if a.get("data-key") == key)
        return float(found)

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    train_command(write_config(folder / "c.yaml", **STEPS))
    return folder / "out"


@pytest.fixture(scope="module")
def page(out):
    page = Page((out / "report.html").read_text())
    assert not page.open, "an element is not closed"
    return page


def test_its_numbers_are_those_of_the_log(out, page):
    lines = metrics(out)
    losses = {line["step"]: line["val/loss"] for line in lines if "val/loss" in line}
    assert page.value("train/loss") == lines[-2]["train/loss"]
    assert page.value("best") == min(losses.values())
    for step, loss in losses.items():
        assert page.row(f"{step}")[1] == f"{loss:.4f}"
        assert ("data", {"value": repr(loss)}) in page.elements
    assert "60 of 60" in " ".join(page.words)
    assert "finished" in page.words


def test_its_curves_are_those_of_the_log(out, page):
    """The points, carried back through the scale of the axes."""
    drawn = re.search(
        r'<b>Loss</b>.*?data-scale="([^"]*)".*?data-name="validation" points="([^"]*)"',
        (out / "report.html").read_text(),
        re.DOTALL,
    )
    x0, x1, y0, y1, log = map(float, drawn[1].split())
    assert not log
    losses = [(line["step"], line["val/loss"]) for line in metrics(out) if "val/loss" in line]
    points = [tuple(map(float, point.split(","))) for point in drawn[2].split()]
    for (step, loss), (x, y) in zip(losses, points, strict=True):
        assert x0 + x / 1000 * (x1 - x0) == pytest.approx(step, abs=0.01)
        assert y1 + y / 1000 * (y0 - y1) == pytest.approx(loss, abs=1e-3 * (y1 - y0))


def test_it_tells_settings_parameters_data_tags_and_starts(out, page):
    assert page.row("optimizer.lr")[1:] == ["0.003", "0.0003"]
    assert page.row("seed") == ["seed", "42"]
    order = [row[0] for row in page.rows if row]
    assert order.index("optimizer.lr") < order.index("seed"), "what differs comes first"
    assert page.row("tok_emb.weight")[1:] == ["131 × 32", "4,192"]
    cfg = load_config(out / "final.config.json")
    total = sum(parameter.count for parameter in parameters_of(cfg))
    assert ("data", {"value": str(total)}) in page.elements
    stream = TokenStream(cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed)
    epoch, window = divmod(60 * cfg.batch_size, len(stream))
    assert page.row("position")[1].startswith(f"window {window:,} of {len(stream):,} in epoch")
    assert f"in epoch {epoch}," in page.row("position")[1]
    recorded = json.loads((out / "best.config.json").read_text())["checkpoint"]
    assert page.row("best")[1:3] == [str(recorded["step"]), f"{recorded['val_loss']:.4f}"]
    (start,) = notes.read_starts(out)
    assert {"time", "step", "version", "jax", "devices", "hosts", "commit"} <= start.keys()


def test_it_loads_nothing_and_needs_no_script(out, page):
    text = (out / "report.html").read_text()
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("<script>") == 1
    assert "prefers-color-scheme:dark" in text


def test_a_resume_is_told_and_the_page_goes_on(out, tmp_path):
    shutil.copytree(out.parent, tmp_path / "again")
    config = write_config(tmp_path / "again/c.yaml", **STEPS | {"num_steps": 80})
    train_command(config, "--resume", "auto")
    page = Page((tmp_path / "again/out/report.html").read_text())
    assert [start["step"] for start in notes.read_starts(tmp_path / "again/out")] == [0, 60]
    assert "80 of 80" in " ".join(page.words)
    assert page.row("80")[1] == f"{metrics(tmp_path / 'again/out')[-1]['val/loss']:.4f}"


def facts(**changes):
    return Facts(
        **{
            "name": "run",
            "num_steps": 10,
            "tokens_per_step": 1,
            "windows_per_step": 1,
            "windows": 10,
            "settings": (),
            "parameters": (),
            "data": (),
            "hardware": (),
        }
        | changes
    )


def test_texts_of_others_stay_text(tmp_path):
    config = write_config(tmp_path / "c.yaml", train_data=f"data/{HOSTILE}", wandb_run_name=HOSTILE)
    cfg = load_config(config)
    sample = {"step": 1, "time": 1.0, "prompt": HOSTILE, "text": HOSTILE}
    (tmp_path / notes.SAMPLES).write_text(json.dumps(sample) + "\n" + "[" * 10_000 + "\n{}\n")
    start = {"time": 1e300, "step": HOSTILE, "devices": {"a": HOSTILE}, "version": None}
    (tmp_path / notes.STARTS).write_text(json.dumps(start) + "\n")
    line = {"step": 3, "time": 1e300, "train/loss": 10**400, "train/" + HOSTILE: 1.0, "tokens": []}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 4, "val/loss": 1e308}\n')
    (tmp_path / f"{HOSTILE.replace('/', '')}.safetensors").write_text("")
    history = History(tmp_path)
    history.update()
    told = facts(name=HOSTILE, settings=settings_of(cfg), hardware=((HOSTILE, HOSTILE),))
    text = render(tmp_path, told, history, Now("running", 2.0))
    page = Page(text)
    assert not page.open
    assert text.count("<script>") == 1
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert('x')" in "".join(page.words), "it is shown, as text"


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 50, 5000])
def test_a_run_of_any_length_has_a_page(tmp_path, steps):
    lines = [{"step": s, "train/loss": 2.0, "train/grad_norm": 0.0} for s in range(1, steps + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History(tmp_path)
    history.update()
    text = render(tmp_path, facts(), history, Now("stopped", 2.0))
    assert not Page(text).open
    assert len(text) < 100_000
    assert "nan" not in text.replace("nano", "")


def test_memory_is_drawn_between_round_numbers(tmp_path):
    lines = [{"step": s, "perf/memory_bytes": 560_000_000 + 13_000_000 * s} for s in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History(tmp_path)
    history.update()
    text = render(tmp_path, facts(), history, Now("stopped", 2.0))
    figure = text.partition("<b>Memory</b>")[2].partition("</figure>")[0]
    ticks = re.findall(r'class="y"[^>]*>([^<]*)<', figure)
    assert ticks == ["550 MiB", "600 MiB", "650 MiB"]


def test_what_is_in_the_way_stays_and_the_run_goes_on(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=2, eval_every=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").write_text("<p>my own notes")
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "out/starts.jsonl").symlink_to(tmp_path / "elsewhere")
    done = train_command(config)
    assert done.stderr.count("report.html") == 1
    assert "stays as it is" in done.stderr
    assert (tmp_path / "out/report.html").read_text() == "<p>my own notes"
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert (tmp_path / "out/final.safetensors").exists()


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path):
    """A folder has the name of the file that is renamed into its place."""
    config = write_config(tmp_path / "c.yaml", num_steps=4, eval_every=1)
    (tmp_path / "out/.report.html.tmp").mkdir(parents=True)
    done = train_command(config)
    assert done.stderr.count("warning: ") == 1
    assert "the run goes on without it" in done.stderr
    assert (tmp_path / "out/final.safetensors").exists()


def test_the_end_is_told_however_it_comes(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=4, optimizer={"lr": 1e38})
    assert command("llm-train", config, cwd=tmp_path).returncode == 3
    assert "failed" in Page((tmp_path / "out/report.html").read_text()).words


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def in_browser(page, tmp_path, *flags):
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    return subprocess.run(
        [CHROMIUM, *fixed, profile, "--enable-logging=stderr", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
class TestInABrowser:
    @pytest.mark.parametrize("scheme, dark", [(0, True), (1, False)])
    def test_it_is_drawn_dark_and_light(self, out, tmp_path, scheme, dark):
        image = pytest.importorskip("matplotlib.image")
        shot = tmp_path / "shot.png"
        colours = f"--blink-settings=preferredColorScheme={scheme}"
        flags = (colours, "--window-size=1000,900", f"--screenshot={shot}")
        done = in_browser(out / "report.html", tmp_path, *flags)
        assert shot.exists(), done.stderr
        pixels = image.imread(shot)[..., :3]
        assert (pixels.mean() < 0.3) == dark
        assert len({tuple(row) for row in (pixels[::7, ::7].reshape(-1, 3) * 8).astype(int)}) > 8
        assert "CONSOLE" not in done.stderr

    def test_it_fits_a_phone(self, out, tmp_path):
        probe = (
            "<script>document.title=document.documentElement.scrollWidth+' of '+innerWidth"
            "+', '+Math.round(document.querySelector('polyline').getBoundingClientRect().width)"
            "</script></body>"
        )
        page = tmp_path / "probe.html"
        page.write_text((out / "report.html").read_text().replace("</body>", probe))
        done = in_browser(page, tmp_path, "--window-size=500,900", "--dump-dom")
        width, inner, curve = map(
            int, re.search(r"<title>(\d+) of (\d+), (\d+)", done.stdout).groups()
        )
        assert width <= inner
        assert curve > inner / 2
        assert "CONSOLE" not in done.stderr

    def test_the_pointer_shows_values(self, out, tmp_path):
        probe = """<script>const plot=document.querySelector(".plot");
        const box=plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent('pointermove',{clientX:box.right-1,clientY:box.top+9}));
        document.title=document.querySelector('.tip').textContent.replaceAll('\\n','; ')
        </script></body>"""
        page = tmp_path / "probe.html"
        page.write_text((out / "report.html").read_text().replace("</body>", probe))
        done = in_browser(page, tmp_path, "--window-size=1000,900", "--dump-dom")
        title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
        loss = next(line["val/loss"] for line in metrics(out)[::-1] if "val/loss" in line)
        told = float(re.search(r"validation ([\d.]+)", title)[1])
        assert title.startswith("step 60;")
        assert told == pytest.approx(loss, abs=2e-3)
