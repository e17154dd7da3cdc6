"""A server of the Model Context Protocol: an assistant asks for the keyframes of videos in some folders.

The client starts the server and talks to it over standard input and output. While it serves, the protocol's
library points file descriptor 1 at standard error, so that what other libraries print disturbs no message.
Calls run in a thread, one at a time; pings are answered meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aks import __version__
from aks.clock import format_time, parse_time
from aks.errors import OUT_OF_MEMORY, UserError, VideoError, is_out_of_memory
from aks.labels import check_question
from aks.messages import jpeg_base64
from aks.video.files import VIDEO_SUFFIXES, is_utf8

if TYPE_CHECKING:  # torch takes seconds to load; a client waits for the server's first word
    from aks.scorers.base import Scorer

logger = logging.getLogger("aks.mcp")

TOOL = "keyframes"
DESCRIPTION = """\
Look into a video: find the frames that matter for a question, and see them. One frame a second of the \
video is searched. The frames that a scorer finds relevant come back as pictures in the order of time, \
each with its frame number, time and score. Ask for what can be seen in one frame ("a person on a \
bicycle", "Where is the cat?"); sound is not heard. Scores compare the frames of one question with one \
another: the best frames come back even where nothing fits, so look at the pictures before you answer. To \
look closer, call again with start and end. A video that was searched before is answered at once."""
MAX_IMAGES = 64  # of an answer; each costs a model some hundred tokens or more
MAX_NAMES = 100  # of videos in an answer
JPEG_QUALITY = 85

OnProgress = Callable[[int, int], None]  # frames done, frames in all


class Arguments(BaseModel):
    """A search in a video."""  # the model reads this, too

    model_config = ConfigDict(extra="forbid")

    video: str = Field("", description="The video's name. Leave it away to be told the names of all videos.")
    question: str | list[str] = Field(
        description="What to look for. Several questions share one pass over the video."
    )
    budget: int = Field(8, ge=1, le=MAX_IMAGES, description="Number of keyframes for each question.")
    start: float | str = Field(0.0, description="Search from here on: seconds or h:mm:ss.")
    end: float | str | None = Field(None, description="Search up to here: seconds or h:mm:ss.")
    fps: float = Field(1.0, description="Frames a second that are searched; more for moments below a second.")


class VideoFolders:
    """The videos that a client may see.

    Args:
        folders: with the folders in them.

    Raises:
        UserError: one is no folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; name folders that hold videos")
        self._roots = [folder.resolve() for folder in folders]

    def find(self, name: str) -> Path:
        """The file of a video, by its absolute path or by its path in one of the folders.

        Raises:
            UserError: there is none. Of what lies outside the folders, by ``..`` or a symbolic link, too,
                this says the same, so that nobody learns what exists there.
        """
        for root in self._roots:
            # Not there; no path; a loop of links.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                path = (root / name).resolve(strict=True)
                if self._may_be_read(path):
                    return path
        raise UserError(f"{name[:200]!r}: no such video in the folders that may be read. {self.list_names()}")

    def names(self) -> list[str]:
        """The videos' names; where folders hold the same one, the absolute path of the later video."""
        found: dict[str, None] = {}
        for root in self._roots:
            for path in sorted(root.rglob("*")):
                with contextlib.suppress(OSError, RuntimeError):
                    if self._may_be_read(path.resolve(strict=True)):
                        name = str(path.relative_to(root))
                        name = str(path) if name in found else name
                        if is_utf8(name):  # as the protocol is; no client can ask for another name
                            found[name] = None
        return list(found)

    def list_names(self) -> str:
        """The names as a sentence."""
        names = self.names()
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f"Videos: {', '.join(names[:MAX_NAMES])}{more}" if names else "The folders hold no video."

    def _may_be_read(self, path: Path) -> bool:
        """Whether a path without links is a video in a folder; no playlist, which FFmpeg would follow."""
        is_inside = any(path.is_relative_to(root) for root in self._roots)
        is_video = is_inside and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        return is_video and not _is_playlist(path)


def _is_playlist(path: Path) -> bool:
    """Whether FFmpeg would read other files, and follow links; it knows other playlists by their names."""
    with path.open("rb") as file:
        return file.read(8) == b"ffconcat"


class KeyframeTool:
    """Answers the tool's calls.

    Args:
        folders: whose videos.
        load_scorer: loads the scorer, at the first call; later ones share it.
        longest_side: of the pictures, in pixels.
        settings: further arguments of :func:`aks.extraction.keyframes.find_in_file`.
    """

    def __init__(
        self,
        folders: VideoFolders,
        load_scorer: Callable[[], Scorer],
        longest_side: int,
        **settings: Any,
    ) -> None:
        self._folders, self._load_scorer, self._longest_side = folders, load_scorer, longest_side
        self._settings = settings
        self._scorer: Scorer | None = None

    def answer(self, arguments: dict[str, Any], on_progress: OnProgress) -> types.CallToolResult:
        """The result of a call; a mistake or a video that cannot be read gives one line, marked as an error.

        Args:
            arguments: as the client sent them.
            on_progress: called after every batch of frames; what it raises ends the call.
        """
        try:
            given = Arguments.model_validate(arguments)
            if given.video:
                return self._find(given, on_progress)
            text = types.TextContent(text=self._folders.list_names())
            return types.CallToolResult(content=[text], structured_content={"videos": self._folders.names()})
        except ValidationError as error:
            reason = "; ".join(f"{row['loc'][0]}: {row['msg']}" for row in error.errors())
        except VideoError as error:
            reason = f"{given.video}: {error}"
        except (UserError, ValueError) as error:
            reason = str(error)
        except Exception as error:  # one call must not end the server
            if not is_out_of_memory(error):
                logger.exception("a call failed")
            reason = OUT_OF_MEMORY if is_out_of_memory(error) else "failed; the server's log says why"
        return types.CallToolResult(content=[types.TextContent(text=reason)], is_error=True)

    def _find(self, given: Arguments, on_progress: OnProgress) -> types.CallToolResult:
        from aks.video.reader import CandidateRule, read_header

        path = self._folders.find(given.video)
        questions = [given.question] if isinstance(given.question, str) else given.question
        if not questions:
            raise ValueError("there is no question; say what to look for")
        for question in questions:
            check_question(question)
        if given.budget * len(questions) > MAX_IMAGES:
            raise ValueError(
                f"at most {MAX_IMAGES} keyframes in one answer: lower the budget, or ask less at once"
            )
        start_s, end_s = (parse_time(at) if isinstance(at, str) else at for at in (given.start, given.end))
        rule = CandidateRule(given.fps, start_s, math.inf if end_s is None else end_s)
        read_header(path)  # what is no video is told before torch and a scorer are loaded
        from aks.extraction.keyframes import find_in_file

        self._scorer = self._scorer or self._load_scorer()
        info, results = find_in_file(
            *(path, questions, self._scorer, given.budget),
            rule=rule,
            on_progress=on_progress,
            **self._settings,
        )
        frame_indices = [keyframe.frame_index for found in results for keyframe in found.keyframes]
        jpegs = _jpegs(path, frame_indices, self._longest_side)
        content: list[types.ContentBlock] = [
            types.TextContent(text=f"{given.video}, {format_time(info.duration_s)} long")
        ]
        answers = []
        for found in results:
            content.append(types.TextContent(text=f"{len(found.keyframes)} keyframes for: {found.question}"))
            rows = []
            for keyframe in found.keyframes:
                frame_index, time_s, score = keyframe.frame_index, keyframe.time_s, keyframe.score
                time = format_time(time_s)
                rows.append({"frame": frame_index, "time_s": time_s, "time": time, "score": score})
                text = f"Frame {frame_index} at {time} ({time_s:.3f} s), score {score:.6f}:"
                content.append(types.TextContent(text=text))
                content.append(types.ImageContent(data=jpegs[frame_index], mime_type="image/jpeg"))
            answers.append({"question": found.question, "keyframes": rows})
        facts = {"fps": info.fps, "num_frames": info.num_frames, "duration_s": info.duration_s}
        return types.CallToolResult(
            content=content, structured_content={"video": given.video, **facts, "questions": answers}
        )


def _jpegs(path: Path, frame_indices: Sequence[int], longest_side: int) -> dict[int, str]:
    """Frames of a video as JPEG in base64, by their number; larger ones are reduced to a size in pixels."""
    from aks.video.reader import Video

    found = {}
    with Video(path) as video:
        for frames in video.read(sorted(set(frame_indices)), chunk_frames=1):
            image = Image.fromarray(frames.pixels[0])
            image.thumbnail((longest_side, longest_side))
            found[int(frames.frame_indices[0])] = jpeg_base64(image, JPEG_QUALITY)
    return found


async def serve(tool: KeyframeTool, remark: str = "") -> None:
    """Serve one client on standard input and output, until it closes them.

    Args:
        tool: answers the calls.
        remark: what the tool's description says besides.
    """
    one_at_a_time = anyio.CapacityLimiter(1)  # a call takes all cores, or the GPU

    async def list_tools(*_: Any) -> types.ListToolsResult:
        described = types.Tool(
            name=TOOL,
            title="Keyframes of a video",
            description=f"{DESCRIPTION}{remark}",
            input_schema=Arguments.model_json_schema(),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
        return types.ListToolsResult(tools=[described])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name != TOOL:
            text = types.TextContent(text=f"{params.name}: no such tool; use {TOOL}")
            return types.CallToolResult(content=[text], is_error=True)
        most_done = 0

        def report(done: int, total: int) -> None:
            nonlocal most_done
            anyio.from_thread.check_cancelled()  # ends the thread where the client wants no answer any more
            if done > most_done:  # the protocol wants it so; a decoding process that died starts again
                most_done = done
                anyio.from_thread.run(context.session.report_progress, done, total)

        return await anyio.to_thread.run_sync(
            tool.answer, params.arguments or {}, report, limiter=one_at_a_time
        )

    server = Server("aks", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)
    try:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
    except* BrokenPipeError:
        logger.info("the client has ended without closing the connection")
