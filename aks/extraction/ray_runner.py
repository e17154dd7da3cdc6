"""Extraction on a Ray cluster: one actor a GPU (or a share of the cores), given some videos at a call.

An actor does what a process alone does, with decoding processes of its own, and writes the same part files
to the same folder, which every node must see. This process hands out the videos, shows one progress bar, and
replaces an actor that dies.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from aks.cli import count_cores
from aks.console import log, progress
from aks.errors import UserError, error_message, is_out_of_memory
from aks.extraction.api import Summary, summarise
from aks.jsonio import read_json
from aks.labels import LabelSet
from aks.locks import VideoLocks
from aks.run_dir import RunDir, file_bytes
from aks.scorers.base import Scorer

MAX_ATTEMPTS = 3  # actors that may die at a video before the video is listed
MAX_STARTUP_CRASHES = 3  # actors that may die in a row with the first call, which loads the model
MAX_CRASHES_WITHOUT_PROGRESS = 9  # and later, without finishing a video
CPU_ACTOR_CORES = 8  # a larger machine takes several actors: models do not scale to more cores
POLL_INTERVAL_S = 2.0
SHARE_OF_CALL = 0.25  # of an actor's share of what is left: calls get shorter, so that actors end together

MakeScorer = Callable[[], Scorer]
# Processes some videos: extract() or store_features(), with the scorer and ``videos=`` to be given.
Work = Callable[..., Summary]


class ActorPlan(NamedTuple):
    """How many actors the cluster takes, each with a model, and the cores and GPUs (0 or 1) of each."""

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
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own processes print to the terminal
    address = address or os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False, "num_cpus": count_cores()}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"--ray_address {address}: cannot join a Ray cluster there: {error_message(error)}"
        ) from None


def plan_actors(device: str, actors: int | None) -> ActorPlan:
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
    on_cpu = device == "cpu"

    def room(cores: int) -> int:
        """How many actors of so many cores fit, none across two nodes."""
        return sum(cpus // cores if on_cpu else min(gpus, cpus // cores) for cpus, gpus in nodes)

    if not room(1):
        remedy = "start more" if on_cpu else "use --device cpu, or start Ray on machines with GPUs"
        raise UserError(f"--engine ray: the cluster has no {'core' if on_cpu else 'GPU'}; {remedy}")
    if actors is None:
        actors = sum(max(1, cpus // CPU_ACTOR_CORES) for cpus, _ in nodes if cpus) if on_cpu else room(1)
    if actors > room(1):
        what = "fewer cores" if on_cpu else f"{room(1)} GPUs, one for each actor"
        raise UserError(f"--ray_actors {actors}: the cluster has {what}")
    cpus = max(cores for cores in range(1, 1 + max(nodes)[0]) if room(cores) >= actors)
    return ActorPlan(actors, cpus, int(not on_cpu))


def run(labels: LabelSet, folder: RunDir, make_scorer: MakeScorer, work: Work, layout: ActorPlan) -> Summary:
    """Process the videos that have no part yet, on all actors.

    Args:
        labels: the questions.
        folder: where the parts go; every node sees it under this path.
        make_scorer: loads the scorer, on the actor.
        work: processes some videos with it, on the actor.
        layout: see :func:`divide`.

    Raises:
        UserError: an actor found a mistake of the user's, or actors die without finishing anything.
    """
    import ray

    videos = list(labels.by_video())
    dispatcher = _Dispatcher(labels, folder, (os.getcwd(), make_scorer, work), layout)
    try:
        # An actor's first call checks that what is there was made with the same settings.
        dispatcher.run([])
        pending = [name for name in videos if not folder.has_part(name)]
        dispatcher.run(dispatcher.divide(pending))
        # A second round: of what other runs had in work, something may be left by dead ones.
        left = [name for name in pending if not folder.has_part(name) and name not in dispatcher.failed]
        VideoLocks(folder).wait(left)
        dispatcher.run(dispatcher.divide([name for name in left if not folder.has_part(name)]))
    finally:
        for actor in dispatcher.actors:
            ray.kill(actor)
    return summarise(labels, folder, videos, dispatcher.scored)


class _Actor:
    """A model and its decoding processes."""

    _scorer = None

    def extract(self, cwd: str, make_scorer: MakeScorer, work: Work, videos: list[str]) -> int:
        """Process videos; how many were scored."""
        try:
            os.chdir(cwd)  # relative names mean the same as in the main process
        except OSError as error:
            where = f"{socket.gethostname()} does not see the folder {cwd}"
            raise UserError(f"--engine ray: {where}: {error.strerror}") from None
        self._scorer = self._scorer or make_scorer()
        return work(self._scorer, videos=videos).scored


class _Dispatcher:
    """Hands videos out to actors.

    Attributes:
        actors: those that live.
        scored: videos scored.
        failed: videos that failed.
    """

    def __init__(
        self, labels: LabelSet, folder: RunDir, arguments: tuple[Any, ...], layout: ActorPlan
    ) -> None:
        self._labels, self._folder, self._arguments, self._layout = labels, folder, arguments, layout
        self._questions = labels.by_video()
        self._attempts: Counter[str] = Counter()  # actors that died at a video
        self._crashes = {False: 0, True: 0}  # in a row, of calls without and with videos
        self._idle: list[Any] = []  # actors
        self._running: dict[Any, tuple[Any, list[str]]] = {}  # of each call, its actor and videos
        self.actors: list[Any] = []
        self.scored = 0
        self.failed: set[str] = set()

    def divide(self, videos: list[str]) -> list[list[str]]:
        """Videos in calls, the largest files first, in calls of ever fewer bytes."""
        sizes = {name: file_bytes(self._labels.video_path(name)) or 1 for name in videos}
        left, wanted = sum(sizes.values()), 0.0
        calls: list[list[str]] = []
        for name in sorted(videos, key=sizes.get, reverse=True):
            if wanted <= 0:
                wanted = SHARE_OF_CALL * left / self._layout.actors
                calls.append([])
            calls[-1].append(name)
            left, wanted = left - sizes[name], wanted - sizes[name]
        return calls

    def run(self, calls: list[list[str]]) -> None:
        """Process the videos of each call, once an actor has started."""
        import ray

        calls, videos = list(calls), [name for names in calls for name in names]
        stamps = {name: self._folder.failure_mtime(name) for name in videos}
        with progress(total=len(videos), unit="video", disable=not videos) as bar:
            while calls or not self._idle or any(names for _, names in self._running.values()):
                busy = sum(bool(names) for _, names in self._running.values())
                while len(self.actors) < max(1, min(self._layout.actors, busy + len(calls))):
                    # It gets videos when it has answered: the cluster may have no room for it now.
                    self._call(self._new_actor(), [])
                while calls and self._idle:
                    self._call(self._idle.pop(), calls.pop(0))
                for call in ray.wait(list(self._running), timeout=POLL_INTERVAL_S)[0]:
                    actor, names = self._running.pop(call)
                    scored, crash = 0, None
                    try:
                        scored = ray.get(call)
                        self._idle.append(actor)
                        self._crashes[bool(names)] = 0
                    except ray.exceptions.RayError as error:  # it died, or has a fault
                        ray.kill(actor)
                        self.actors.remove(actor)
                        crash = error
                    left = [name for name in names if not self._folder.has_part(name)]
                    failed = [name for name in left if self._folder.failure_mtime(name) != stamps[name]]
                    if crash:
                        scored = len(names) - len(left)
                        left = [name for name in left if name not in failed]
                        failed += self._after_crash(names, left, crash)
                        # Each alone, so that the others do not share the fate of a deadly one.
                        calls += [[name] for name in left if name not in failed]
                    self.scored += scored
                    for name in failed:
                        self.failed.add(name)
                        why = read_json(self._folder.failure_path(name))["reason"]
                        log(f"failed: {self._labels.video_path(name)}: {why}")
                bar.set_description(f"ray, {busy + len(self._idle)} actors", refresh=False)
                done = sum(self._folder.has_part(name) or name in self.failed for name in videos)
                bar.update(done - bar.n)

    def _call(self, actor: Any, names: list[str]) -> None:
        self._running[actor.extract.remote(*self._arguments, names)] = actor, names

    def _new_actor(self) -> Any:
        import ray

        modules = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
        actor = ray.remote(
            num_cpus=self._layout.cpus,
            num_gpus=self._layout.gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"PYTHONPATH": modules}},
        )(_Actor).remote()
        self.actors.append(actor)
        return actor

    def _after_crash(self, names: list[str], left: list[str], error: Exception) -> list[str]:
        """Count the crash of an actor; the videos that are given up.

        Args:
            names: the videos of its call.
            left: those of them that are neither finished nor failed.
            error: Ray's.

        Raises:
            UserError: a mistake of the user's was the cause, or actors do nothing but die.
        """
        cause = getattr(error, "cause", None)  # of an exception in the actor
        if cause and (isinstance(cause, UserError) or is_out_of_memory(cause)):
            raise cause from None
        text = error_message(cause or error)
        self._crashes[bool(names)] = 1 if len(left) < len(names) else self._crashes[bool(names)] + 1
        limit = MAX_CRASHES_WITHOUT_PROGRESS if names else MAX_STARTUP_CRASHES
        if self._crashes[bool(names)] == limit:
            what = "without finishing a video" if names else "before their first video"
            raise UserError(
                f"--engine ray: {limit} actors in a row died {what} ({text}); too little memory for the "
                "model? Ray's logs tell more"
            )
        self._attempts.update(left)
        why = f"{MAX_ATTEMPTS} Ray actors died with it in work ({text})"
        failed = [name for name in left if self._attempts[name] == MAX_ATTEMPTS]
        for name in failed:
            self._folder.record_failure(name, why, [question.id for question in self._questions[name]])
        return failed
