"""Extraction on a Ray cluster: one actor a GPU (or a share of the cores), fed video by video.

The actors do what a process alone does, with decoding processes of their own, and write the same part
files to the same folder, which every node must see. This process hands out the videos, longest first,
shows all progress in one bar, and starts an actor anew when one dies, with what it had in work.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aks.benchmarks import LabelSet
from aks.claims import Claims
from aks.cli import count_cores
from aks.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from aks.extraction import Feed, Summary, summarise
from aks.outscores import RunFolder
from aks.pool import Job
from aks.progress import progress, say
from aks.ray_desk import Desk
from aks.scorers import Scorer

TRIES = 3  # actors that may die with a video in work before the video is listed
IDLE_DEATHS = 3  # actors that may die in a row before they have a video in work
FRUITLESS_DEATHS = 9  # and with one, but without one finished in between
CPU_ACTOR_CORES = 8  # a larger machine takes several actors: models do not scale to more cores
TICK_S = 0.2

MakeScorer = Callable[[], Scorer]
# Processes the videos of a feed, e.g. extract() with all but scorer and feed given.
Work = Callable[[Scorer, Feed], Summary]
# Candidates of videos by their headers.
Estimate = Callable[[list[Job]], dict[str, int]]


@dataclass(frozen=True)
class Layout:
    """How the cluster is divided.

    Attributes:
        actors: how many, each with a model.
        cpus: cores for each: one for the model and the others for decoding.
        gpus: GPUs for each, 0 or 1.
    """

    actors: int
    cpus: int
    gpus: int


def connect(address: str | None) -> None:
    """Join the cluster at an address (or that of ``RAY_ADDRESS``), or start one on this machine.

    Raises:
        UserError: Ray is not installed, or nothing answers there.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray: Ray is missing; run: pip install -c constraints.txt -r requirements-ray.txt"
        ) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False, "num_cpus": count_cores()}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = str(error).strip().split("\n")[0]
        raise UserError(f"--ray_address {address}: cannot join a Ray cluster there: {text}") from None


def divide(device: str, actors: int | None) -> Layout:
    """A layout for the cluster: an actor each GPU; without GPUs, one each :data:`CPU_ACTOR_CORES` cores.

    Args:
        device: ``cuda`` or ``cpu``.
        actors: how many; None for as many as fit.

    Raises:
        UserError: the cluster has too few GPUs or cores.
    """
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in found]
    if device == "cpu":
        nodes = [(cpus, max(1, cpus // CPU_ACTOR_CORES)) for cpus, _ in nodes]
    fitting = [(cpus, count) for cpus, count in nodes if cpus and count]
    most = sum(count for _, count in fitting)
    if not most:
        remedy = "use --device cpu, or start Ray on machines with GPUs" if device != "cpu" else "start more"
        raise UserError(f"--engine ray: the cluster has no {'core' if device == 'cpu' else 'GPU'}; {remedy}")
    cpus = max(1, min(cpus // count for cpus, count in fitting))
    if actors is not None and actors > most:
        if device != "cpu":
            raise UserError(f"--ray_actors {actors}: the cluster has {most} GPUs, one for each actor")
        cpus = max(1, sum(cpus for cpus, _ in fitting) // actors)
        if actors > sum(cpus for cpus, _ in fitting):
            raise UserError(f"--ray_actors {actors}: the cluster has fewer cores")
    return Layout(actors or most, cpus, int(device != "cpu"))


def run(
    labels: LabelSet,
    folder: RunFolder,
    make_scorer: MakeScorer,
    work: Work,
    estimate: Estimate,
    layout: Layout,
) -> Summary:
    """Process the videos that have no part yet, on all actors.

    Args:
        labels: the questions.
        folder: where the parts go; every node sees it under this path.
        make_scorer: loads the scorer, on the actor.
        work: processes a feed's videos with it, on the actor.
        estimate: tells how long the videos are.
        layout: see :func:`divide`.

    Raises:
        UserError: an actor found a mistake of the user's, or actors die before they finish anything.
    """
    videos = list(labels.by_video())
    crew = _Crew(labels, folder, make_scorer, work, layout)
    pending = [name for name in videos if not folder.has_part(name)]
    try:
        # Also with nothing to do: an actor checks that what is there was made with the same settings.
        crew.do(pending, estimate([Job(name, labels.video_path(name)) for name in pending]))
        # Again: what dead runs left, and what the actors found to be misread by an earlier version.
        pending = [n for n in videos if not folder.has_part(n) and folder.failure_stamp(n) is None]
        if pending:
            Claims(folder).settle(pending, say)
            crew.do(pending, estimate([Job(name, labels.video_path(name)) for name in pending]))
    finally:
        crew.end()
    return summarise(labels, folder, videos, crew.scored)


def _first_line(error: BaseException) -> str:
    """What happened to an actor, without the traceback."""
    error = getattr(error, "cause", None) or error
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


class _Bar:
    """What extraction uses of a tqdm bar, told to the desk now and then."""

    def __init__(self, tell: Callable[[int, int], object]) -> None:
        self.n = self.total = 0
        self._tell, self._told_s = tell, 0.0

    def update(self, frames: int) -> None:
        self.n += frames
        self.refresh()

    def refresh(self) -> None:
        if time.monotonic() - self._told_s > TICK_S:
            self._told_s = time.monotonic()
            self._tell(self.n, self.total)


class _Actor:
    """A model and its decoding processes."""

    def work(
        self,
        cwd: str,
        desk: Any,
        token: str,
        expected: dict[str, int],
        make_scorer: MakeScorer,
        work: Work,
    ) -> int | str:
        """Process videos until none is left; how many were scored, or a mistake of the user's in words."""
        import ray

        bar = _Bar(lambda frames, more: desk.count.remote(token, frames, more))

        def names() -> Iterator[str]:
            while (name := ray.get(desk.take.remote(token))) is not None:
                yield name

        try:
            os.chdir(cwd)  # relative names mean the same as in the main process
        except OSError as error:
            return f"--engine ray: {socket.gethostname()} does not see the folder {cwd}: {error.strerror}"
        try:
            scorer = make_scorer()
            summary = work(scorer, Feed(names(), bar, desk.say.remote, token, expected))
        except UserError as error:
            return str(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return f"{OUT_OF_MEMORY} (on {socket.gethostname()}: {error})".split("\n")[0]
        ray.get(desk.count.remote(token, bar.n, bar.total))
        return summary.scored


class _Crew:
    """The actors, and what they have done.

    Attributes:
        scored: videos scored.
    """

    def __init__(
        self,
        labels: LabelSet,
        folder: RunFolder,
        make_scorer: MakeScorer,
        work: Work,
        layout: Layout,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()
        self._labels, self._folder, self._layout = labels, folder, layout
        self._duty = make_scorer, work
        self._deaths: dict[str, int] = {}  # of each video, how many actors died with it in work
        self._idle_deaths = self._fruitless_deaths = 0  # in a row
        self._running: dict[Any, tuple[Any, str]] = {}  # of each result to come, its actor and token
        self.scored = 0

    def do(self, names: list[str], lengths: dict[str, int]) -> None:
        """Process videos; those in work at all but one of the deaths allowed, one by one at the end."""
        import ray

        failures = {name: self._folder.failure_stamp(name) for name in names}
        suspects = []
        order = sorted(names, key=lambda name: lengths[name])  # taken from the end
        desk = self._desk
        ray.get(desk.open.remote(order))
        for _ in range(max(1, min(self._layout.actors, len(names)))):
            self._start(lengths)
        total = sum(lengths.values())
        with progress(total=total, unit="frame", desc=f"ray, {len(self._running)} actors") as bar:
            while self._running:
                done, _ = ray.wait(list(self._running), timeout=TICK_S)
                for future in done:
                    actor, token = self._running.pop(future)
                    try:
                        outcome = ray.get(future)
                    except ray.exceptions.RayError as error:  # it died, ran out of memory, or has a fault
                        given = ray.get(desk.given.remote(token))
                        left = [name for name in given if self._is_open(name, failures)]
                        finished = set(given) - set(left)
                        ray.kill(actor)
                        self._bury(token, left, bool(finished), _first_line(error))
                        again = [name for name in left if self._is_open(name, failures)]
                        if len(names) > 1:  # what was in work with a deadly one shall not share its fate
                            suspects += [name for name in again if self._deaths[name] == TRIES - 1]
                            again = [name for name in again if name not in suspects]
                        ray.get(desk.back.remote(token, again, sum(lengths[name] for name in finished)))
                        self.scored += sum(map(self._folder.has_part, finished))
                        self._start(lengths)
                        continue
                    if isinstance(outcome, str):
                        raise UserError(outcome)
                    self.scored += outcome
                frames, more, lines = ray.get(desk.look.remote())
                for line in lines:
                    say(line)
                bar.total = total + more
                bar.update(frames - bar.n)
        for name in suspects:
            self.do([name], {name: lengths[name]})

    def _is_open(self, name: str, failures: dict[str, int | None]) -> bool:
        return not self._folder.has_part(name) and self._folder.failure_stamp(name) == failures[name]

    def _start(self, lengths: dict[str, int]) -> None:
        import ray

        token = uuid.uuid4().hex
        modules = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
        actor = ray.remote(
            num_cpus=self._layout.cpus,
            num_gpus=self._layout.gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"PYTHONPATH": modules}},
        )(_Actor).remote()
        future = actor.work.remote(os.getcwd(), self._desk, token, lengths, *self._duty)
        self._running[future] = actor, token

    def _bury(self, token: str, left: list[str], worked: bool, cause: str) -> None:
        """Note the death of an actor with videos in work.

        Raises:
            UserError: they do nothing but die.
        """
        Claims.drop(self._folder, token)
        self._idle_deaths = 0 if worked or left else self._idle_deaths + 1
        self._fruitless_deaths = 0 if worked else self._fruitless_deaths + 1
        if self._fruitless_deaths == FRUITLESS_DEATHS:
            raise UserError(
                f"--engine ray: {FRUITLESS_DEATHS} actors in a row died without finishing a video ({cause}); "
                "Ray's logs tell more"
            )
        if self._idle_deaths == IDLE_DEATHS:
            raise UserError(
                f"--engine ray: {IDLE_DEATHS} actors in a row died before their first video ({cause}); too "
                "little memory for the model? Ray's logs tell more"
            )
        questions = self._labels.by_video()
        for name in left:
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._deaths[name] == TRIES:
                reason = f"{TRIES} Ray actors died with it in work ({cause})"
                self._folder.write_failure(name, reason, [question.id for question in questions[name]])
                say(f"failed: {self._labels.video_path(name)}: {reason}")

    def end(self) -> None:
        """End what still runs, and give its claims up."""
        import ray

        for actor, token in self._running.values():
            ray.kill(actor)
            Claims.drop(self._folder, token)
        self._running = {}
