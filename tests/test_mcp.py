"""aks mcp, by the official client over stdio: pictures and times, what may be read, errors, cancelling."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import forkserver
import numpy as np
import pytest
from conftest import ROOT
from extraction_setup import ToyScorer
from media import number_of, numbered, write_video
from PIL import Image
from test_documents import blocks

import aks
from aks.commands import mcp as command


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with videos, and with ways out of it to videos beside it."""
    folder = tmp_path_factory.mktemp("mcp") / "films"
    (folder / "sub").mkdir(parents=True)
    write_video(folder / "sub/one.mp4", frames=200, fps=25, size=(1024, 64), draw=numbered)
    write_video(folder / "long.mp4", frames=400, fps=1, size=(32, 16))
    (folder / "bad.mp4").write_text("no video")
    for name in ("secret.mp4", "secret.ts"):
        write_video(folder.parent / name, frames=25, fps=25)
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile one.mp4\n")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n../secret.ts\n#EXT-X-ENDLIST\n")
    return folder


@pytest.fixture(scope="module")
def in_session(films):
    """A function that runs an async function of the client's session with a server."""
    from anyio.from_thread import start_blocking_portal
    from mcp import ClientSession, StdioServerParameters, stdio_client

    (text,) = blocks(ROOT / "docs/models.md", "json")
    (documented,) = json.loads(text)["mcpServers"].values()
    cache = {"AKS_CACHE": str(films.parent / "cache"), "AKS_CACHE_GB": "1"}
    parameters = StdioServerParameters(
        command=forkserver.python("torch"),
        args=[
            "-m",
            documented["command"],
            documented["args"][0],
            str(films),
            "--device",
            "cpu",
            "--workers",
            "0",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), **cache},
        cwd=ROOT,
    )

    @asynccontextmanager
    async def connect():
        with open(films.parent / "log", "w") as log:
            async with stdio_client(parameters, log) as streams, ClientSession(*streams) as session:
                await session.initialize()
                yield session

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connect()) as session:
        yield lambda function: portal.call(function, session)


@pytest.fixture
def ask(in_session):
    """A function that calls the tool and returns its answer."""

    def call(**arguments):
        arguments = {"question": "Where is the cat?", **arguments}
        return in_session(lambda session: session.call_tool("keyframes", arguments))

    return call


@pytest.fixture
def refusal(ask):
    """A function that calls the tool in vain and returns the line that says why."""

    def call(**arguments):
        result = ask(**arguments)
        (content,) = result.content
        assert result.is_error and result.structured_content is None and "\n" not in content.text
        return content.text

    return call


def test_each_keyframe_comes_with_its_picture_time_and_score(films, in_session, ask):
    (tool,) = in_session(lambda session: session.list_tools()).tools
    assert tool.name == "keyframes" and "ImageNet" in tool.description
    assert tool.input_schema["required"] == ["question"]
    assert ask().structured_content == {"videos": ["bad.mp4", "long.mp4", "sub/one.mp4"]}

    questions = ["Where is the cat?", "Who opens the red door?"]
    result = ask(video="sub/one.mp4", question=questions, budget=2, start="0:01", end=6.5)
    facts = result.structured_content
    assert (facts["fps"], facts["num_frames"], facts["duration_s"]) == (25.0, 200, 8.0)
    assert [found["question"] for found in facts["questions"]] == questions
    rows = [row for found in facts["questions"] for row in found["keyframes"]]
    texts = [content.text for content in result.content if content.type == "text"]
    assert [text.startswith("Frame ") for text in texts] == [False, False, True, True, False, True, True]
    shown = [pair for pair in itertools.pairwise(result.content) if pair[1].type == "image"]
    for row, (text, image) in zip(rows, shown, strict=True):
        assert 1 <= row["time_s"] == row["frame"] / 25 <= 6.5
        times = f"{row['time']} ({row['time_s']:.3f} s)"
        assert text.text == f"Frame {row['frame']} at {times}, score {row['score']:.6f}:"
        assert row["time"] == f"0:00:0{row['time_s']:.3f}"
        picture = Image.open(io.BytesIO(base64.b64decode(image.data)))
        assert (picture.format, picture.size, image.mime_type) == ("JPEG", (768, 48), "image/jpeg")
        assert number_of(np.asarray(picture)) == row["frame"]

    absolute = ask(video=str(films / "up/films/sub/one.mp4"), question=questions, budget=2, start=1, end=6.5)
    assert absolute.structured_content["questions"] == facts["questions"]


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.mp4", "{parent}/secret.mp4", "link.mp4", "up/secret.mp4", "sub/../up/secret.mp4"),
        *("list.m3u8", "concat.mp4", "loop.mp4", "/proc/self/cmdline", "sub", "a\0b", "x" * 5000),
    ],
)
def test_what_lies_outside_the_folders_is_not_told_from_what_is_not_there(films, refusal, name):
    name = name.format(parent=films.parent)
    absent = refusal(video="absent.mp4")
    assert absent.endswith("may be read. Videos: bad.mp4, long.mp4, sub/one.mp4")
    assert refusal(video=name) == absent.replace("'absent.mp4'", repr(name[:200]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"video": "bad.mp4"}, "bad.mp4: cannot be opened"),
        ({"question": " "}, "the question is empty"),
        ({"question": []}, "there is no question"),
        ({"question": 1}, "question: Input should be a valid string"),
        ({"start": 9}, "sub/one.mp4: no candidate frame from 9 s on; the video is 8.000 s long"),
        ({"start": "1:75"}, "1:75: use seconds or h:mm:ss"),
        ({"start": 2, "end": 1}, "start and end are 2 and 1 s"),
        ({"budget": 0}, "budget: Input should be greater"),
        ({"budget": 30, "question": ["cat", "dog", "cow"]}, "at most 64 keyframes in one answer"),
        ({"speed": 2}, "speed: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_the_server_goes_on(ask, refusal, arguments, words):
    assert words in refusal(**{"video": "sub/one.mp4", **arguments})
    assert not ask(video="sub/one.mp4", budget=1).is_error


def test_a_call_that_is_cancelled_ends_and_the_next_one_is_answered(films, in_session):
    import anyio

    async def scenario(session):
        begun, progress = anyio.Event(), []

        async def note(done, total, message):
            progress.append((done, total))
            begun.set()

        async def search(video, **options):
            arguments = {"video": video, "question": "Where is the cat?"}
            return await session.call_tool("keyframes", arguments, **options)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: search("long.mp4", progress_callback=note))
                await begun.wait()
                await session.send_ping()  # answered while the other call is at work
                num_done = progress[-1][0]
                tasks.cancel_scope.cancel()
            return num_done, progress, await search("sub/one.mp4", read_timeout_seconds=30)

    num_done, progress, result = in_session(scenario)
    assert num_done < 400 and {total for _, total in progress} == {400} and not result.is_error
    kept = sorted(path.name for path in (films.parent / "cache").rglob("*.safetensors"))
    assert kept and not any("long" in name for name in kept)


def test_the_scorer_is_loaded_at_the_first_call_that_needs_it_and_kept(films):
    from aks.mcp_server import KeyframeTool, VideoFolders

    loads = []

    def load():
        loads.append(1)
        if len(loads) == 1:
            raise aks.UserError("no weights")
        return ToyScorer()

    tool = KeyframeTool(VideoFolders([films]), load, 768)
    asked = {"video": "sub/one.mp4", "question": "?", "budget": 3}
    progress = []
    assert tool.answer({"question": "?"}, None).structured_content["videos"] and not loads
    assert tool.answer(asked, None).content[0].text == "no weights"
    expected = aks.keyframes(films / "sub/one.mp4", "?", 3, scorer=ToyScorer())
    for _ in range(2):
        answer = tool.answer(asked, lambda done, total: progress.append((done, total)))
        (found,) = answer.structured_content["questions"]
        rows = [(row["frame"], row["time_s"], row["score"]) for row in found["keyframes"]]
        assert rows == [dataclasses.astuple(keyframe)[:3] for keyframe in expected] and progress[-1] == (8, 8)
    assert len(loads) == 2


def test_of_two_videos_of_one_name_the_later_has_its_whole_path(films, tmp_path):
    from aks.mcp_server import VideoFolders

    (tmp_path / "bad.mp4").write_text("another one")
    (tmp_path / os.fsdecode(b"latin\xe9.mp4")).write_text("no message can name it")
    folders = VideoFolders([films, tmp_path])
    assert folders.names() == ["bad.mp4", "long.mp4", "sub/one.mp4", str(tmp_path / "bad.mp4")]
    assert [folders.find(name) for name in ("bad.mp4", str(tmp_path / "bad.mp4"))] == [
        films / "bad.mp4",
        tmp_path / "bad.mp4",
    ]
    with pytest.raises(aks.UserError, match=r"bad.mp4: no such folder"):
        VideoFolders([films / "bad.mp4"])


def test_without_the_package_one_line_says_how_to_get_it(films, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aks mcp", str(films)])
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "aks.mcp_server", raising=False)
    monkeypatch.delattr(aks, "mcp_server", raising=False)
    with pytest.raises(aks.UserError, match=r"requirements-mcp\.txt"):
        command.main()


def test_ctrl_c_ends_it_though_the_client_has_not(films):
    arguments = [sys.executable, "-m", "aks", "mcp", str(films)]  # a signal does not reach a forked server
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes, env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "", "version": ""},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        print(json.dumps(message), file=server.stdin, flush=True)
        assert "serverInfo" in server.stdout.readline()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 130 and server.stderr.read() == "interrupted\n"
