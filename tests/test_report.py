"""Reports: the page holds every keyframe and its picture, escapes all text and loads nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import chromium
import forkserver
import numpy as np
import pytest
from conftest import check_mistake
from PIL import Image

from aks.extraction.keyframes import Curve, Keyframe, QuestionKeyframes
from aks.labels import Question
from aks.match import Match
from aks.report.curves import draw
from aks.report.found import report_found
from aks.report.questions import largest_gains, report_question
from aks.report.thumbnails import choose, read_thumbnails
from aks.selection import select_keyframes
from aks.video.reader import Video

ROOT = Path(__file__).resolve().parent.parent
NASTY = "Is it <script>alert('1')</script> & \"this\"? \u202eمرحبا\u202c 🐇"
VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """A page's elements: (tag, attributes, text within, tags above); fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found, self._open, self.raw = [], [], path.read_text("utf-8")
        self.feed(self.raw)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), (tag, names)
        element = (tag, dict(attributes), [], [above[0] for above in self._open])
        self.found.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), [], [above[0] for above in self._open]))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, (tag, self.getpos())
        self._open.pop()

    def handle_data(self, data):
        for _, _, texts, _ in self._open:
            texts.append(data)

    def all(self, tag: str, css: str = "") -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of a tag, and a class."""
        return [
            (attributes, "".join(texts))
            for name, attributes, texts, _ in self.found
            if name == tag and (not css or css in (attributes.get("class") or "").split())
        ]


def write_run(folder: Path, video: Path) -> list[str]:
    """A run of 14 questions on a video of 5 s at 25 frames a second; the flags that name it.

    The evidence of the first is at 2 s, where its best score is; the second one's is elsewhere.
    """
    folder.mkdir(exist_ok=True)
    labels = [
        {"id": "a", "video": str(video), "question": NASTY, "options": ["<i>yes</i>", "no"], "answer": 1}
        | {"evidence_times": [[2.0, 2.2]], "duration": 5.0, "group": "x", "category": 'c"1'},
        {"id": "b", "video": str(video), "question": "Two?", "evidence_frames": [[99, 101]], "duration": 5.0},
        *({"id": f"{n}", "video": str(video), "question": f"More {n}?", "group": "y"} for n in range(12)),
    ]
    frames = list(range(0, 125, 5))
    scores = np.random.default_rng(0).random((len(labels), 25))
    scores[:2, 10], scores[1, 20] = 1.5, -1
    chosen = [select_keyframes(row, frames, 4, t1=0.5, max_depth=2) for row in scores]
    record = {"max_num_frames": 4, "strategy": "ada", "t1": 0.5, "max_depth": 2, "options": {}}
    contents = {
        "labels": labels,
        "scores": scores.tolist(),
        "frames": [frames] * len(labels),
        "times": [[frame / 25 for frame in frames]] * len(labels),
        "selected_frames": chosen,
        "selection": record,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [
        *("--dataset_name", "custom", "--label_file", str(folder / "labels.json")),
        *("--score_path", str(folder / "scores.json")),
        *("--selected_frames", str(folder / "selected_frames.json")),
    ]


def make_report(flags: list[str], page: Path) -> subprocess.CompletedProcess[str]:
    command = [forkserver.python("torch"), "-m", "aks", "report", *flags, "--output", page]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def run_flags(clips, tmp_path_factory) -> list[str]:
    return write_run(tmp_path_factory.mktemp("run"), clips / "one.mp4")


@pytest.fixture(scope="module")
def path(run_flags, tmp_path_factory) -> Path:
    page = tmp_path_factory.mktemp("report") / "new/report.html"
    assert re.search("14 questions, [0-9]+ pictures", make_report(run_flags, page).stdout)
    return page


@pytest.fixture(scope="module")
def page(path) -> Page:
    return Page(path)


def test_ids_are_unique_links_lead_to_them_and_headings_and_landmarks_are_there(page):
    ids = [attributes["id"] for _, attributes, _, _ in page.found if "id" in attributes]
    assert len(set(ids)) == len(ids) > 14
    links = [a[name] for _, a, _, _ in page.found for name in ("href", "aria-labelledby") if a.get(name)]
    assert {link.removeprefix("#") for link in links if not link.startswith("data:")} <= set(ids)
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("header")) == 1
    assert [text for _, text in page.all("h2")][0::2] == ["Summary", "Questions"]
    assert len(page.all("article")) == 14 and ("lang", "en") in page.found[0][1].items()


def test_nothing_is_loaded_and_only_the_page_s_script_may_run(page):
    for tag, attributes, _, _ in page.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    without_pictures = re.sub(r'data:image/webp;base64,[^"]+', "", page.raw)
    assert not re.search(r"https?:|//\w|@import|url\(", without_pictures)
    assert len(page.all("script")) == len(page.all("style")) == 1
    (policy,) = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_text_is_escaped_and_comes_out_as_it_is(page):
    headings = [text for _, text in page.all("h3") if text.startswith("Is it")]
    assert headings == [NASTY]
    assert page.all("li", "right")[0][1].split() == ["✓", "no", "(right)"]
    assert "<i>yes</i>" in [text.strip() for _, text in page.all("li")]
    assert page.all("article")[0][0]["data-category"] == 'c"1'
    assert 'c"1' in [attributes["value"] for attributes, _ in page.all("option")]


def test_every_mark_has_its_keyframe_with_its_picture_and_alternative_text(page, run_flags, clips):
    chosen = json.loads(Path(run_flags[-1]).read_text())
    plots = [attributes["data-x"].split() for attributes, _ in page.all("div", "plot")]
    assert [len(xs) for xs in plots] == [len(row) for row in chosen]
    points = [a["d"] for a, _ in page.all("path", "far")[1:]]  # the first is the legend's
    points = [far + a["d"] for far, (a, _) in zip(points, page.all("path", "near")[1:], strict=True)]
    for marks, xs, row in zip(points, plots, chosen, strict=True):
        assert sorted(re.findall(r"M(\d+) \d+h", marks), key=int) == xs
        assert [int(x) for x in xs] == [round(1000 * frame / 120) for frame in row]  # the last is frame 120
    captions = [text for _, text in page.all("li") if ", frame" in text]
    frames = [int(re.search(r"frame (\d+)", text)[1]) for text in captions]
    assert frames == [frame for row in chosen for frame in row]
    assert all(f"0:00:0{frame / 25:.1f}" in text for frame, text in zip(frames, captions, strict=True))
    labels = [a["aria-label"] for a, _ in page.all("svg", "picture")]
    assert labels == [f"frame {frame} at 0:00:0{frame / 25:.1f}" for frame in frames]
    names = [a["href"].removeprefix("#") for a, _ in page.all("use")]
    pictures = {a["id"]: a["href"] for a, _ in page.all("image")}
    assert len(names) == len(frames) and set(names) == set(pictures)
    assert len(pictures) == len(set(frames)) < len(frames)  # questions share the pictures of their video
    with Video(clips / "one.mp4") as video:
        expected = {int(one.frame_indices[0]): one.pixels[0] for one in video.read(sorted(set(frames)), 1)}
    for name, frame in zip(names, frames, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(pictures[name].partition(",")[2])))
        difference = np.asarray(image.convert("RGB")).astype(int) - expected[frame]
        assert np.abs(difference).mean() < 12  # WebP is lossy


def test_evidence_recall_and_differences_are_told(page, run_flags):
    evidence = [a["d"] for a, _ in page.all("path", "evidence")[1:]]
    assert evidence[0] == "M417 0H458V100H417z" and evidence[1].startswith("M825 0H842")
    assert set(evidence[2:]) == {""}
    assert "evidence: 0:00:02.0 to 0:00:02.2" in page.raw
    # Candidates 0, 6, 12 and 18 of 25 begin the quarters, of which every other one is shaded.
    bands = [a["d"] for a, _ in page.all("path", "segments")[1:]]
    assert bands[0] == "M0 0H250V88H0zM500 0H750V88H500z" and bands[2] == "M0 0H1000V88H0z"
    uniform = [a["d"] for a, _ in page.all("path", "uniform")[1:]]
    assert uniform[0] == "M0 90V100M260 90V100M521 90V100M781 90V100"  # 0, 1.25, 2.5 and 3.75 of 4.8 s
    assert uniform[2] == "M0 90V100M333 90V100M667 90V100M1000 90V100"  # candidates: the length is unknown
    near = [text for _, text in page.all("li", "near")]
    assert all("near evidence" in text for text in near)
    chosen = json.loads(Path(run_flags[-1]).read_text())
    of_first = [frame for frame in chosen[0] if 25 <= frame <= 80]  # evidence from 2 to 2.2 s
    of_second = [frame for frame in chosen[1] if abs(frame - 100) <= 6]  # a second is a stride of 5 frames
    assert [int(text.split()[4]) for text in near] == of_first + of_second and 50 in of_first
    gains = [attributes.get("data-gain") for attributes, _ in page.all("article")]
    # Uniform frames of 5 s at 4 a video: 0, 1.25, 2.5 and 3.75 s; the nearest is 0.3 s from the evidence.
    assert float(gains[0]) == pytest.approx(0.3)
    assert "0.0 s from the evidence, uniform 0.3 s" in page.all("summary")[0][1]
    rows = ["".join(text.split()) for _, text in page.all("tr")][2:]
    recall = len(of_second) > 0
    assert [row[:9] for row in rows] == [f"-1{recall:.3f}0.", "x11.0001.", f"all2{(1 + recall) / 2:.3f}"]
    ahead = [text for _, text in page.all("ol") if "uniform 0.3 s" in text]
    assert ahead and NASTY[:20] in ahead[0]


def candidates(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frames = np.arange(count) * 25
    return frames, frames / 25.0, np.random.default_rng(seed).random(count)


def test_a_long_curve_is_short_and_keeps_its_peak():
    frames, times_s, scores = candidates(100_000)
    scores[77_777] = 9
    asked = Question(0, "q", "v", "?")
    row = report_question(asked, Path("v"), frames, times_s, scores, [frames[77_777]], None)
    drawing = draw(row)
    assert len(drawing.curve) < 8000
    x, y = map(int, re.match(r"M(\d+) (\d+)l", drawing.curve).groups())
    points = [(x, y)]
    for dx, dy in re.findall(r"(-?\d+) (-?\d+)", drawing.curve.partition("l")[2]):
        points.append((points[-1][0] + int(dx), points[-1][1] + int(dy)))
    assert min(points, key=lambda point: point[1])[0] == pytest.approx(777, abs=3)
    assert drawing.xs == [778] and points[-1][0] >= 995
    assert [text for _, text in drawing.ticks] == ["0:00:00", "10:00:00", "20:00:00"]


def test_uniform_frames_are_evenly_spread_in_time_where_the_candidates_are_not():
    times_s = np.array([0.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0])
    scores = np.array([0.0, 0.5, 0.0, 0.5, 0.0, 1.0, 0.5])
    frames = (times_s * 25).astype(int)
    row = report_question(
        Question(0, "q", "v", "?"), Path("v"), frames, times_s, scores, frames[[1, 3, 5]], None
    )
    assert row.uniform_s.tolist() == [0, 6, 12]
    assert (row.comparison.keyframes, row.comparison.uniform) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_candidates_make_a_drawing(count):
    frames, times_s, scores = candidates(count)
    rule = {"budget": 1, "strategy": "ada"}
    row = report_question(Question(0, "q", "v", "?"), Path("v"), frames, times_s, scores, frames, rule)
    drawing = draw(row)
    assert drawing.xs == [0, 1000][:count] and drawing.ticks[0] == (0.0, "00:00.0")
    none = report_question(Question(0, "q", "v", "?"), Path("v"), frames, times_s, scores, [], rule)
    assert (draw(none).xs, draw(none).far, none.comparison, len(none.uniform_s)) == ([], "", None, 0)


def test_only_so_many_pictures_as_fit_the_best_first():
    rows = []
    for index in range(3):
        frames, times_s, scores = candidates(40, index)
        best = np.sort(np.argsort(-scores)[:10])
        video = Path(f"{index // 2}.mp4")
        rows.append(
            report_question(
                Question(index, "q", "v", "?"), video, frames, times_s, scores, frames[best], None
            )
        )
    wanted, count = choose(rows, None, 12)
    assert sum(map(len, wanted.values())) <= 12 and 3 < count < 10
    more, _ = choose(rows, count + 1, None)
    assert sum(map(len, more.values())) > 12
    assert choose(rows, None, 1)[1] == 1  # one a question at least
    assert choose(rows, 0, None) == ({rows[0].video: set(), rows[2].video: set()}, 0)
    best = int(rows[2].frame_indices[rows[2].scores.argmax()])
    assert choose(rows, 1, None)[0][rows[2].video] == {best}


def test_largest_gains_are_by_evidence_where_there_is_any():
    frames, times_s, scores = candidates(100)
    scores[50] = 2

    def row(**fields):
        asked = Question(0, "q", "v", "?", duration_s=100.0, **fields)
        return report_question(asked, Path("v"), frames, times_s, scores, [1250], None)

    hit, miss, none = row(evidence_times_s=((50.0, 50.0),)), row(evidence_frames=((25, 25),)), row()
    assert (hit.comparison.keyframes, hit.comparison.uniform) == (0, 50)  # one uniform frame, the first
    assert (miss.comparison.keyframes, miss.comparison.uniform) == (49, 1)
    assert largest_gains([none, miss, hit]) == ([hit], [miss])
    assert none.comparison.keyframes == 1 and largest_gains([none]) == ([none], [])


def test_pictures_in_a_folder_are_kept_and_those_of_a_changed_video_are_not(clips, tmp_path):
    video, page, folder = tmp_path / "a b.mp4", tmp_path / "pages/r.html", tmp_path / "pictures"
    shutil.copy(clips / "one.mp4", video)
    frames, times_s, scores = candidates(5)
    page.parent.mkdir()
    rows = [report_question(Question(0, "q", "v", "?"), video, frames, times_s, scores, frames[:2], None)]

    def pictures():
        found = read_thumbnails(rows, page, folder)
        assert found.failures == {} and [picture.name for picture in found.by_frame.values()] == ["", ""]
        paths = [page.parent / picture.url for picture in found.by_frame.values()]
        assert [path.name for path in paths] == ["0000000.webp", "0000025.webp"]
        assert found.by_frame[video, 0].url.startswith("../pictures/a_b-")
        return [path.read_bytes() for path in paths]

    first = pictures()
    size = video.stat()
    video.write_bytes(b"no video, but no newer than the pictures")
    os.utime(video, (size.st_atime, size.st_mtime))
    assert pictures() == first
    video.unlink()
    assert pictures() == first
    for name, change_s in (("two.mp4", 1e6), ("one.mp4", -1e6)):  # an older file, too, may take the place
        before = pictures()
        shutil.copy(clips / name, video)
        os.utime(video, (size.st_atime, size.st_mtime + change_s))
        assert pictures() != before


def test_what_a_run_lacks_is_said_and_the_page_is_there(clips, tmp_path):
    flags = write_run(tmp_path / "run", tmp_path)
    shutil.copy(clips / "two.mp4", tmp_path / "run/other.mp4")  # has 72 frames
    labels = json.loads((tmp_path / "run/labels.json").read_text())
    for index, entry in enumerate(labels):
        entry["video"] = f"gone{index}.mp4" if index else "other.mp4"
    (tmp_path / "run/labels.json").write_text(json.dumps(labels))
    for name in ("selection", "times"):
        (tmp_path / f"run/{name}.json").unlink()
    for name in ("scores", "frames", "selected_frames"):  # the last video failed in step 1
        rows = json.loads((tmp_path / f"run/{name}.json").read_text())
        (tmp_path / f"run/{name}.json").write_text(json.dumps([*rows[:-1], []]))
    done = make_report(flags, tmp_path / "report.html")
    assert "no pictures of 14 videos, such as" in done.stdout
    page = Page(tmp_path / "report.html")
    notes = [text for _, text in page.all("p", "note")]
    assert notes[0].startswith("Note: no pictures of 13 of 14 videos: file not found (gone1.mp4, gone2.mp4, ")
    assert notes[1].startswith("Note: no pictures of 1 of 14 videos: has fewer frames than were scored")
    assert [note.split()[1:3] for note in notes[2:]] == [
        ["times", "by"],
        ["no", "segments:"],
        ["1", "questions"],
    ]
    assert len(page.all("div", "plot")) == 13 and "No frame of this video was scored." in page.raw
    # Without times a second is a candidate.
    first = next(text for _, text in page.all("li") if ", frame" in text)
    seconds, frame = re.match(r"0:00:(\d\d\.\d), .* frame (\d+)", first).groups()
    assert float(seconds) == int(frame) / 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": {"scores_sha256": "0"}}, "was selected by other scores than"),
        ({"selected_frames": [[1], *[[0]] * 13]}, "entry 0 (a): keyframe 1 is none of the scored frames of"),
        ({"scores": [[0.0]], "frames": [[0]]}, "they must belong together"),
        ({"selection": []}, "holds no record of a selection"),
        ({}, "use a name that ends in .html"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(clips, tmp_path, run_script, changes, words):
    flags = write_run(tmp_path / "run", clips / "one.mp4")
    for name, content in changes.items():
        (tmp_path / f"run/{name}.json").write_text(json.dumps(content))
    output = tmp_path / ("report.html" if changes else "report.txt")
    check_mistake(run_script("-m", "aks", "report", *flags, "--output", output), words)
    assert not output.exists()


def test_what_a_folder_holds_is_shown_by_question_and_video_the_best_first(clips, tmp_path):
    def keyframe(name: str, frame: int, score: float) -> Keyframe:
        return Keyframe(frame, frame / 25, score, clips / name)

    frames, times_s, _ = candidates(3)
    curve = Curve(frames, times_s, np.array([0.1, 0.5, 0.3]))
    one = [keyframe("one.mp4", 0, 0.1), keyframe("one.mp4", 25, 0.5)]
    two = [keyframe("two.mp4", 25, 0.5), keyframe("two.mp4", 50, 0.3)]
    found = [[QuestionKeyframes("a?", one, curve)], [QuestionKeyframes("a?", two, curve)]]
    facts = {"folder": "clips", "videos": [{"video": "one.mp4"}, {"video": "two.mp4"}], "failures": []}
    facts |= {"scorer": "toy", "budget": 3, "strategy": "ada", "options": {}, "t1": 0.8, "t2": -100}
    facts |= {"max_depth": 5, "quota": "full", "candidate_fps": 2.0, "start_s": 10.0, "end_s": None}
    facts["fast"] = True
    for row, num_scored in zip(facts["videos"], (3, 2), strict=True):
        row |= {"num_scored": num_scored, "num_candidates": 50}
    videos = [clips / "one.mp4", clips / "two.mp4"]
    report_found(tmp_path / "r.html", videos, found, [[two[0], one[1], two[1]]], facts, [Match(0.02, 500)])
    page = Page(tmp_path / "r.html")
    assert [text for _, text in page.all("bdi")] == ["two.mp4", "one.mp4"]
    assert "2 a second, from 0:00:10.0; 5 of 100 looked at (--fast)" in [text for _, text in page.all("dd")]
    (note,) = [text for _, text in page.all("p", "note")]
    assert note.startswith("Note: a?: the best stands out: as many frames of other footage hold 0.02 that")
    captions = [text for _, text in page.all("li") if ", frame" in text]
    assert [re.findall(r"frame \d+", text)[0] for text in captions] == ["frame 25", "frame 50", "frame 25"]
    assert len(page.all("image")) == 3 and all("open" in a for a, _ in page.all("details"))


@pytest.mark.long
@pytest.mark.skipif(not chromium.CHROMIUM, reason="Chromium is not installed")
def test_in_a_browser_the_page_is_whole_at_every_width_and_answers_mouse_finger_and_keys(path, tmp_path):
    box = "(() => {{ const r = {}.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }})()"
    first = "document.querySelector('.plot')"
    with chromium.browser(tmp_path / "profile") as browser:
        for name, settings in {"wide": {}, "narrow": {"width": 390}, "dark": {"dark": True}}.items():
            browser.open(path, **settings)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            browser.evaluate("location.hash = '#q1'")
            assert browser.evaluate("new Promise(done => setTimeout(() => done(1), 300))")
            assert browser.evaluate("document.querySelectorAll('details[open]').length") == 1
            x, y, width, height = browser.evaluate(box.format(first))
            assert 0 < width <= settings.get("width", 1280) and y > 0
            text = "document.querySelector('.tip')?.textContent ?? ''"
            if name == "narrow":
                browser.tap(x + width * 50 / 120, y + height / 3)
            else:
                browser.move(x + width * 50 / 120, y + height / 3)
            assert "frame 50" in browser.evaluate(text)
            # The picture is there, within the window, and shows what the page holds.
            left, top, wide, high = browser.evaluate(box.format("document.querySelector('.tip .picture')"))
            assert left >= 0 and left + wide <= settings.get("width", 1280) and wide > 100
            browser.screenshot(tmp_path / f"{name}.png")
            pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
            shown = pixels[int(top) : int(top + high), int(left) : int(left + wide)]
            assert shown.std() > 20
            assert (pixels[-3, 3].mean() < 60) == (name == "dark")
            browser.press("Escape")
            assert browser.evaluate(text) == ""
            browser.evaluate("document.querySelector('summary').focus()")  # as the link has; a tap has not
            browser.press("Tab")
            assert browser.evaluate("document.activeElement.getAttribute('role')") == "slider"
            for key, index in (("Home", 1), ("ArrowRight", 2), ("End", 4)):
                browser.press(key)
                assert browser.evaluate("document.activeElement.getAttribute('aria-valuenow')") == str(index)
            assert browser.evaluate("document.activeElement.ariaValueText") == browser.evaluate(text).strip()
        count = "document.querySelectorAll('article:not([hidden])').length"
        put = "(() => {{ const e = document.forms[0].elements['{}']; e.value = '{}';"
        put += " e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        for field, value, expected in (("text", "MORE 1?", 2), ("text", "", 14), ("group", "y", 12)):
            browser.evaluate(put.format(field, value))
            assert browser.evaluate(count) == expected
        browser.evaluate(put.format("order", "1"))
        gains = browser.evaluate("[...document.querySelectorAll('article')].map(a => +(a.dataset.gain ?? 0))")
        assert gains == sorted(gains, reverse=True) and browser.evaluate("document.forms[0].hidden") is False
        assert browser.errors == []
        assert {url for url in browser.requests if not url.startswith("data:")} == {path.as_uri()}
