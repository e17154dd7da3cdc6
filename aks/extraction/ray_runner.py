"""Extraction on a Ray cluster: one actor for each GPU (or for some cores), which gets some videos at a call.

An actor does what a process alone does, with decoding processes of its own, and writes the same part files to
the same folder, which every node must see. This process distributes the videos, shows one progress bar, and
replaces an actor that dies. (Ray's own retries would repeat the call of a video that kills its actor; here
each video of such a call is tried alone, and the deadly one is recorded as failed.)
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from aks.console import progress
from aks.cores import count_cores
from aks.errors import UserError, error_message, is_out_of_memory
from aks.extraction.api import Summary
from aks.jsonio import read_json
from aks.labels import LabelSet, VideoJob
from aks.locks import VideoLocks
from aks.run_dir import RunDir
from aks.scorers.base import Scorer
from aks.video.files import file_bytes

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # actors that may die at a video before the video is recorded as failed
MAX_STARTUP_CRASHES = 3  # actors in a row that may die in their first call, which loads the model
MAX_CRASHES_WITHOUT_PROGRESS = 9  # actors in a row that may die later without finishing a video
CPU_ACTOR_CORES = 8  # a larger machine takes several actors: models do not scale to more cores
POLL_INTERVAL_S = 2.0
CALL_FRACTION = 0.25  # of an actor's share of the rest: calls get shorter, so that actors end together

MakeScorer = Callable[[], Scorer]
# extract() or store_features() with all arguments but the scorer and ``videos=``.
Work = Callable[..., Summary]


class ActorPlan(NamedTuple):
    """The number of actors, each with a model, and the cores and GPUs (0 or 1) of each."""

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
    """Plan so many actors; None: one for each GPU, on CPUs one for every :data:`CPU_ACTOR_CORES` cores.

    Raises:
        UserError: the cluster has too few GPUs or cores.
    """
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in resources]
    on_cpu = device == "cpu"

    def capacity(cores: int) -> int:
        """How many actors of so many cores fit; none spans two nodes."""
        return sum(cpus // cores if on_cpu else min(gpus, cpus // cores) for cpus, gpus in nodes)

    if not capacity(1):
        remedy = "start more" if on_cpu else "use --device cpu, or start Ray on machines with GPUs"
        raise UserError(f"--engine ray: the cluster has no {'core' if on_cpu else 'GPU'}; {remedy}")
    if actors is None:
        actors = sum(max(1, cpus // CPU_ACTOR_CORES) for cpus, _ in nodes if cpus) if on_cpu else capacity(1)
    if actors > capacity(1):
        available = "fewer cores" if on_cpu else f"{capacity(1)} GPUs, one for each actor"
        raise UserError(f"--ray_actors {actors}: the cluster has {available}")
    cpus = max(cores for cores in range(1, 1 + max(nodes)[0]) if capacity(cores) >= actors)
    return ActorPlan(actors, cpus, int(not on_cpu))


def run(labels: LabelSet, run_dir: RunDir, make_scorer: MakeScorer, work: Work, plan: ActorPlan) -> int:
    """Process the videos that have no part yet, on all actors; return how many were scored.

    Every node must see the run's folder under the same path.

    Raises:
        UserError: an actor found a mistake of the user's, or actors die without finishing anything.
    """
    import ray

    jobs = labels.jobs
    dispatcher = _Dispatcher(jobs, run_dir, (os.getcwd(), make_scorer, work), plan)
    try:
        dispatcher.run([])  # an actor's first call checks the settings of what is in the folder
        dispatcher.run(dispatcher.split([job for job in jobs if not run_dir.has_part(job.name)]))
        # A second round for the videos that other runs had locked and died at.
        unresolved = [
            job for job in jobs if not run_dir.has_part(job.name) and job.name not in dispatcher.failed
        ]
        VideoLocks(run_dir).wait([job.name for job in unresolved])
        dispatcher.run(dispatcher.split([job for job in unresolved if not run_dir.has_part(job.name)]))
    finally:
        for actor in dispatcher.actors:
            ray.kill(actor)
    return dispatcher.num_scored


class _Actor:
    """A model and its decoding processes."""

    _scorer = None

    def extract(self, cwd: str, make_scorer: MakeScorer, work: Work, videos: list[str]) -> int:
        """Process videos; return how many were scored."""
        try:
            os.chdir(cwd)  # relative names mean the same as in the main process
        except OSError as error:
            where = f"{socket.gethostname()} does not see the folder {cwd}"
            raise UserError(f"--engine ray: {where}: {error.strerror}") from None
        self._scorer = self._scorer or make_scorer()
        return work(self._scorer, videos=videos).scored


class _Dispatcher:
    """Distributes videos among actors.

    Attributes:
        actors: those alive.
        num_scored: videos scored.
        failed: names of videos that failed.
    """

    def __init__(
        self, jobs: list[VideoJob], run_dir: RunDir, arguments: tuple[Any, ...], plan: ActorPlan
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._run_dir, self._arguments, self._plan = run_dir, arguments, plan
        self._attempts: Counter[str] = Counter()  # actors that died at a video
        self._crashes = {False: 0, True: 0}  # in a row, in calls without and with videos
        self._idle: list[Any] = []  # actors
        self._running: dict[Any, tuple[Any, list[str]]] = {}  # call -> its actor and videos
        self.actors: list[Any] = []
        self.num_scored = 0
        self.failed: set[str] = set()

    def split(self, jobs: list[VideoJob]) -> list[list[str]]:
        """Divide videos into calls, by name: the largest files first, and ever fewer bytes to a call."""
        sizes = {job.name: file_bytes(job.path) or 1 for job in jobs}
        bytes_left, wanted = sum(sizes.values()), 0.0
        calls: list[list[str]] = []
        for name in sorted(sizes, key=sizes.get, reverse=True):
            if wanted <= 0:
                wanted = CALL_FRACTION * bytes_left / self._plan.actors
                calls.append([])
            calls[-1].append(name)
            bytes_left, wanted = bytes_left - sizes[name], wanted - sizes[name]
        return calls

    def run(self, calls: list[list[str]]) -> None:
        """Make the calls, once an actor has started."""
        import ray

        calls, videos = list(calls), [name for names in calls for name in names]
        failures_before = {name: self._run_dir.failure_mtime(name) for name in videos}
        with progress(total=len(videos), unit="video", disable=not videos) as bar:
            while calls or not self._idle or any(names for _, names in self._running.values()):
                num_busy = sum(bool(names) for _, names in self._running.values())
                while len(self.actors) < max(1, min(self._plan.actors, num_busy + len(calls))):
                    # An empty call first: an actor for which the cluster has no room yet gets no videos.
                    self._call(self._new_actor(), [])
                while calls and self._idle:
                    self._call(self._idle.pop(), calls.pop(0))
                for call in ray.wait(list(self._running), timeout=POLL_INTERVAL_S)[0]:
                    calls += self._finish(call, failures_before)
                bar.set_description(f"ray, {num_busy + len(self._idle)} actors", refresh=False)
                num_done = sum(self._run_dir.has_part(name) or name in self.failed for name in videos)
                bar.update(num_done - bar.n)

    def _call(self, actor: Any, names: list[str]) -> None:
        self._running[actor.extract.remote(*self._arguments, names)] = actor, names

    def _new_actor(self) -> Any:
        import ray

        modules = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
        actor = ray.remote(
            num_cpus=self._plan.cpus,
            num_gpus=self._plan.gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"PYTHONPATH": modules}},
        )(_Actor).remote()
        self.actors.append(actor)
        return actor

    def _finish(self, call: Any, failures_before: dict[str, int | None]) -> list[list[str]]:
        """Take the result of a call; return the calls that its crash makes necessary."""
        import ray

        actor, names = self._running.pop(call)
        crash = None
        try:
            num_scored = ray.get(call)
            self._idle.append(actor)
            self._crashes[bool(names)] = 0
        except ray.exceptions.RayError as error:  # the actor died, or raised an exception
            ray.kill(actor)
            self.actors.remove(actor)
            crash = error
        unfinished = [name for name in names if not self._run_dir.has_part(name)]
        failed = [name for name in unfinished if self._run_dir.failure_mtime(name) != failures_before[name]]
        retries = []
        if crash:
            num_scored = len(names) - len(unfinished)
            unfinished = [name for name in unfinished if name not in failed]
            failed += self._after_crash(names, unfinished, crash)
            # Each video alone, so that one that kills its actor takes no other with it.
            retries = [[name] for name in unfinished if name not in failed]
        self.num_scored += num_scored
        for name in failed:
            self.failed.add(name)
            reason = read_json(self._run_dir.failure_path(name))["reason"]
            logger.warning("failed: %s: %s", self._jobs[name].path, reason)
        return retries

    def _after_crash(self, names: list[str], unfinished: list[str], error: Exception) -> list[str]:
        """Count the crash of an actor in a call; return those of its unfinished videos that are given up.

        Raises:
            UserError: a mistake of the user's was the cause, or actors do nothing but die.
        """
        cause = getattr(error, "cause", None)  # an exception in the actor
        if cause and (isinstance(cause, UserError) or is_out_of_memory(cause)):
            raise cause from None
        message = error_message(cause or error)
        made_progress = len(unfinished) < len(names)
        self._crashes[bool(names)] = 1 if made_progress else self._crashes[bool(names)] + 1
        limit = MAX_CRASHES_WITHOUT_PROGRESS if names else MAX_STARTUP_CRASHES
        if self._crashes[bool(names)] == limit:
            when = "without finishing a video" if names else "before their first video"
            raise UserError(
                f"--engine ray: {limit} actors in a row died {when} ({message}); too little memory for the "
                "model? Ray's logs tell more"
            )
        self._attempts.update(unfinished)
        given_up = [name for name in unfinished if self._attempts[name] == MAX_ATTEMPTS]
        reason = f"{MAX_ATTEMPTS} Ray actors died with it in work ({message})"
        for name in given_up:
            ids = [question.id for question in self._jobs[name].questions]
            self._run_dir.record_failure(name, reason, ids)
        return given_up
