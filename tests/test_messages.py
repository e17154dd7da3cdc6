"""Messages for models: frames in order, each with its true time, and what a server is sent and says."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from chat_receiver import ANSWER, decode_images, receiving
from conftest import check_mistake
from media import picture, write_video
from PIL import Image

import aks
from aks.messages import Frame, ask, format_time, read_frames, to_messages, video_metadata, with_data_urls

TIMES_S = (0.0, 2.5, 3723.0625)
LABELS = [f"Frame {n} at {time}" for n, time in enumerate(("0:00:00.000", "0:00:02.500", "1:02:03.062"), 1)]
QUESTION = "When does it move?"
LEAD = "Frames of one video, each after its time (h:mm:ss.mmm).\n"


@pytest.fixture
def frames() -> list[Frame]:
    """Three frames of moving blocks, 96 x 64 pixels; one is a PIL image."""
    pixels = [picture(10 * number, 96, 64) for number in range(3)]
    images = [pixels[0], Image.fromarray(pixels[1]), pixels[2][:, ::-1]]
    return [Frame(n, time_s, image) for n, (time_s, image) in enumerate(zip(TIMES_S, images, strict=True))]


@pytest.fixture
def receiver(monkeypatch):
    """A server; no proxy and no key of this machine's."""
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with receiving() as server:
        yield server


def texts_of(messages) -> list[str]:
    return [part["text"] for part in messages[0]["content"] if part["type"] == "text"]


def test_neither_torch_nor_a_decoder_is_loaded_before_frames_are_read():
    code = "import sys, aks.messages; print([m for m in ('torch', 'transformers', 'av') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_times_are_written_to_the_millisecond():
    shown = [format_time(t) for t in (0, 0.0004, 59.9996, 3599.9999, 36000.001)]
    assert shown == ["0:00:00.000", "0:00:00.000", "0:01:00.000", "1:00:00.000", "10:00:00.001"]


def test_frames_are_read_with_the_times_at_which_they_are_shown(tmp_path):
    pts = [0, 40, 80, 1080, 1100, 4000]
    path = write_video(tmp_path / "a.mkv", frames=6, pts=pts)
    found = read_frames(path, [1, 3, 5])
    assert [(frame.frame_index, frame.time_s) for frame in found] == [(1, 0.04), (3, 1.08), (5, 4.0)]
    with aks.Video(path) as video:
        (expected,) = video.read([1, 3, 5])
    assert np.array_equal([frame.image for frame in found], expected.pixels)


def test_each_image_stands_after_its_time_and_the_question_ends_the_message(frames):
    for style, kind in (("openai", "image_url"), ("transformers", "image")):
        (message,) = to_messages(QUESTION, frames, style=style)
        kinds = [part["type"] for part in message["content"]]
        assert message["role"] == "user" and kinds == [*["text", kind] * 3, "text"]
        labels = [f"{label}:" for label in LABELS]
        assert texts_of([message]) == [LEAD + labels[0], *labels[1:], QUESTION]


def test_openai_messages_are_json_and_lose_no_more_than_jpeg_does(frames):
    messages = to_messages(QUESTION, frames)
    assert json.loads(json.dumps(messages)) == messages
    for image, frame in zip(decode_images(messages), frames, strict=True):
        assert np.abs(image.astype(int) - np.asarray(frame.image)).mean() < 12
    coarse = to_messages(QUESTION, frames, quality=10)
    assert len(json.dumps(coarse)) < 0.7 * len(json.dumps(messages))


def test_transformers_messages_hold_the_pixels_themselves(frames):
    content = to_messages(QUESTION, frames, style="transformers")[0]["content"]
    images = [part["image"] for part in content if part["type"] == "image"]
    assert np.array_equal(images, [np.asarray(frame.image) for frame in frames])


@pytest.mark.parametrize(("longest_side", "size"), [(48, (48, 32)), (200, (96, 64)), (1, (1, 1))])
def test_images_larger_than_the_longest_side_are_reduced(frames, longest_side, size):
    content = to_messages(QUESTION, frames, style="transformers", longest_side=longest_side)[0]["content"]
    assert {part["image"].size for part in content if part["type"] == "image"} == {size}
    assert np.asarray(frames[1].image).shape == (64, 96, 3)  # the caller's stays as it is


def test_a_video_is_followed_by_all_times(frames):
    (message,) = to_messages(QUESTION, frames, style="video")
    video, text = message["content"]
    assert video["type"] == "video"
    assert np.array_equal(video["video"], [np.asarray(frame.image) for frame in frames])
    lines = text["text"].splitlines()
    assert lines == ["Times of the video's frames (h:mm:ss.mmm):", *LABELS, QUESTION]


def test_a_video_for_qwen3_vl_holds_each_frame_twice_at_its_own_time(frames):
    (message,) = to_messages(QUESTION, frames, style="qwen3_vl")
    video, text = message["content"]
    images = [np.asarray(frame.image) for frame in frames]
    assert np.array_equal(video["video"], np.repeat(images, 2, axis=0)) and text["text"] == QUESTION
    metadata = video_metadata(frames)
    assert len(metadata["frames_indices"]) == len(video["video"])
    times_s = np.divide(metadata["frames_indices"], metadata["fps"])
    assert np.abs(times_s - np.repeat(TIMES_S, 2)).max() < 0.00051
    assert metadata["total_num_frames"] > max(metadata["frames_indices"])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"question": " "}, aks.UserError, "the question is empty"),
        ({"frames": []}, ValueError, "no frames"),
        ({"style": "vllm"}, ValueError, "'vllm': must be one of openai, transformers"),
        ({"longest_side": 0}, ValueError, "longest_side 0"),
        ({"quality": 96}, ValueError, "quality 96"),
        ({"frames": [Frame(0, 0.0, np.zeros((8, 8), np.uint8))]}, ValueError, r"image \(8, 8\) uint8"),
        ({"frames": [Frame(0, 0.0, np.zeros((8, 8, 3)))]}, ValueError, "float64: must be"),
    ],
)
def test_what_is_no_message_is_refused(frames, changes, error, words):
    arguments = {"question": QUESTION, "frames": frames, **changes}
    with pytest.raises(error, match=words):
        to_messages(**arguments)


@pytest.mark.parametrize("style", ["video", "qwen3_vl"])
def test_frames_of_a_video_have_one_size(frames, style):
    frames.append(Frame(3, 4.0, np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ValueError, match="one size"):
        to_messages(QUESTION, frames, style=style)
    assert to_messages(QUESTION, frames, style="transformers")


def test_a_server_gets_the_frames_their_times_and_the_key(frames, receiver, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    answer = ask(f"{receiver.url}/", "qwen", to_messages(QUESTION, frames), max_tokens=7, temperature=0)
    assert answer == ANSWER["choices"][0]["message"]["content"]
    ((method, path, headers, body),) = receiver.requests
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert headers["authorization"] == "Bearer secret" and headers["content-type"] == "application/json"
    messages = body.pop("messages")
    assert body == {"model": "qwen", "max_tokens": 7, "temperature": 0}
    for image, frame in zip(decode_images(messages), frames, strict=True):
        assert np.abs(image.astype(int) - np.asarray(frame.image)).mean() < 12
    assert all(f"{label}:" in text for label, text in zip(LABELS, texts_of(messages), strict=False))
    assert texts_of(messages)[-1] == QUESTION


def test_without_a_key_none_is_sent(receiver):
    ask(receiver.url, "qwen", [])
    assert "authorization" not in receiver.requests[0][2]


def test_an_answer_in_pieces_is_joined(receiver):
    receiver.kind = "text/event-stream; charset=utf-8"
    pieces = [{"role": "assistant"}, {"content": "At "}, {"content": "noon."}, {}]
    chunks = [json.dumps({"choices": [{"delta": piece}]}) for piece in pieces] + ['{"choices": []}', "[DONE]"]
    receiver.body = "".join(f"data: {chunk}\n\n" for chunk in chunks)
    assert ask(receiver.url, "qwen", []) == "At noon."


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, '{"error": {"message": "Incorrect API key"}}', "HTTP 401 Unauthorized: Incorrect API key"),
        (404, '{"object": "error", "message": "no\\nmodel m"}', "HTTP 404 Not Found: no model m"),
        (422, '{"detail": [{"msg": "x"}]}', 'HTTP 422 Unprocessable Entity: {"detail": [{"msg": "x"}]}'),
        (502, "<html>\n bad gateway", "HTTP 502 Bad Gateway: <html> bad gateway"),
        (500, "long " * 99, "HTTP 500 Internal Server Error: " + ("long " * 60)),
        (500, "", "HTTP 500 Internal Server Error: no message"),
        (200, '{"choices": []}', 'an answer without choices: {"choices": []}'),
        (200, '{"error": {"message": "overloaded"}}', "an answer without choices: overloaded"),
        (200, "<html>", "an answer without choices: <html>"),
        (
            200,
            '{"choices": [{"finish_reason": "length", "message": {"content": null}}]}',
            "an answer without text (finish_reason: length)",
        ),
    ],
)
def test_what_a_server_says_of_a_failure_is_told_in_one_line(receiver, status, body, words):
    receiver.status, receiver.body = status, body
    with pytest.raises(aks.UserError) as raised:
        ask(receiver.url, "m", [])
    assert str(raised.value) == f"{receiver.url}/chat/completions: {words}"


def test_a_stream_that_holds_an_error_is_told(receiver):
    receiver.kind, receiver.body = "text/event-stream", 'data: {"error": {"message": "no memory"}}\n\n'
    with pytest.raises(aks.UserError, match=r"without choices: .*no memory"):
        ask(receiver.url, "m", [])


def test_a_redirect_is_told_and_the_key_is_not_carried_on(receiver, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    receiver.status, receiver.headers = 302, {"Location": f"{receiver.url}/elsewhere"}
    with pytest.raises(aks.UserError, match=r"HTTP 302 Found: .*/elsewhere"):
        ask(receiver.url, "m", [])
    assert len(receiver.requests) == 1


def test_a_silent_server_and_one_that_is_not_there_are_told(receiver):
    receiver.released.clear()
    with pytest.raises(aks.UserError, match=r"silent for 0\.1 s; allow more time"):
        ask(receiver.url, "m", [], timeout_s=0.1)
    receiver.released.set()
    with receiving() as other:
        closed = other.url
    with pytest.raises(
        aks.UserError, match=f"{closed}/chat/completions: Connection refused; is a server running"
    ):
        ask(closed, "m", [])


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc", "http://[bad/v1"])
def test_a_wrong_address_is_told(url):
    with pytest.raises(aks.UserError, match=r"http://|Invalid IPv6"):
        ask(url, "m", [])


def test_a_key_that_cannot_be_sent_is_not_shown(receiver, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(aks.UserError, match="OPENAI_API_KEY") as raised:
        ask(receiver.url, "m", [])
    assert "ret" not in str(raised.value) and receiver.requests == []


def test_the_command_prints_messages_and_asks(clips, tmp_path, run_script, receiver, monkeypatch):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path))  # the second call scores nothing anew
    monkeypatch.setenv("AKS_CACHE_GB", "1")
    command = ("keyframes.py", clips / "one.mp4", "Where is the cat?", "Who opens the door?", "--budget", 2)
    done = run_script(*command, "--messages", "openai", "--longest_side", 64)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["question"] for row in rows] == list(command[2:4])
    first, second = (row["messages"] for row in rows)
    assert texts_of(first)[-1] == "Where is the cat?" and texts_of(second)[-1] == "Who opens the door?"
    assert [max(image.shape) for image in decode_images(first)] == [64, 64]

    asked = run_script(*command, "--longest_side", 64, "--ask", receiver.url, "--model", "qwen", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = ANSWER["choices"][0]["message"]["content"]
    document = json.loads(asked.stdout)
    assert [question["answer"] for question in document["questions"]] == [answer, answer]
    assert [body["messages"] for *_, body in receiver.requests] == [first, second]
    for question, messages in zip(document["questions"], (first, second), strict=True):
        times = [keyframe["time"] for keyframe in question["keyframes"]]
        assert [
            f"Frame {number} at {time}:" in text
            for number, time, text in zip((1, 2), times, texts_of(messages), strict=False)
        ] == [True, True]

    shown = run_script(*command, "--ask", receiver.url, "--model", "qwen")
    assert shown.stdout.endswith(f"\n{command[2]}\n{answer}\n\n{command[3]}\n{answer}\n\n"), shown.stderr
    shown = run_script(*command, "--ask", "http://localhost:9", "--model", "qwen")
    lines = [line for line in shown.stderr.splitlines() if line.startswith("failed: ")]
    assert shown.returncode == 1 and len(lines) == 2 and "Connection refused" in lines[1], shown.stderr
    assert shown.stdout.count("frame") == 2  # what was found stands there all the same


def test_a_question_that_the_server_refuses_costs_no_other_answer(clips, run_script, receiver):
    receiver.first = [(400, '{"error": {"message": "too long"}}')]
    command = ("keyframes.py", clips / "two.mp4", "Where is the cat?", "Who opens the door?", "--workers", 0)
    asked = run_script(*command, "--ask", receiver.url, "--model", "qwen", "--json", "--quiet")
    first, second = json.loads(asked.stdout)["questions"]
    reason = f"{receiver.url}/chat/completions: HTTP 400 Bad Request: too long"
    assert first["error"] == reason and "answer" not in first and first["keyframes"]
    assert second["answer"] == ANSWER["choices"][0]["message"]["content"] and "error" not in second
    assert (asked.returncode, asked.stderr) == (1, f"failed: Where is the cat?: {reason}\n")


def test_data_urls_become_the_images_of_chat_templates(frames):
    messages = to_messages(QUESTION, frames)
    converted = with_data_urls(messages)
    assert [part["type"] for part in converted[0]["content"]] == [
        part["type"] for part in to_messages(QUESTION, frames, style="transformers")[0]["content"]
    ]
    urls = [part["image_url"]["url"] for part in messages[0]["content"] if part["type"] == "image_url"]
    assert [part["image"] for part in converted[0]["content"] if part["type"] == "image"] == urls
    assert json.dumps(converted)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ask", "http://x"], "--ask URL and --model NAME go together"),
        (["--model", "x"], "--ask URL and --model NAME go together"),
        (["--longest_side", 9], "--longest_side goes with --messages or --ask"),
        (["--clip_margin", 1], "--clip_margin goes with --clips"),
        (["--ask", "http://x", "--model", "x", "--csv"], "--ask goes with the table or --json"),
        (["--messages", "openai", "--json"], "not allowed with argument"),
        (["--ask", "localhost:80", "--model", "x"], "localhost:80: the server's address must begin"),
    ],
)
def test_flags_that_contradict_one_another_are_refused(clips, run_script, flags, words):
    check_mistake(run_script("keyframes.py", clips / "one.mp4", "Where?", *flags), words)


def test_messages_of_several_videos_are_refused(clips, run_script):
    check_mistake(run_script("keyframes.py", clips, "Where?", "--messages", "openai"), "go with one video")
