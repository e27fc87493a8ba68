"""The jobs that wait for a slot. The clients take turns: the one that was served least so far comes first."""

from collections import deque
from collections.abc import Callable

from serve.clients.client import Client
from serve.engine.jobs import Job
from serve.engine.shares import Shares


class FairQueue:
    """A queue of jobs for each client. Service is counted in positions: those of prompts, thoughts and tokens.

    The jobs of one client keep their order. Clients that were served equally take turns.
    """

    def __init__(self) -> None:
        self._jobs: dict[Client, deque[Job]] = {}
        """Jobs by client; the client whose last turn was longest ago comes first."""
        self._served: Shares[Client] = Shares()

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def add(self, job: Job) -> None:
        """Appends a job to those of its client."""
        if job.client not in self._jobs:
            self._jobs[job.client] = deque()
            self._served.enter(job.client)
        self._jobs[job.client].append(job)

    def remove(self, job: Job) -> bool:
        """Removes a job; returns whether it was waiting."""
        jobs = self._jobs.get(job.client)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._jobs[job.client]
        return True

    def take(self, may_run: Callable[[Client], bool]) -> Job | None:
        """Removes and returns the next job of the clients for which ``may_run`` is true; None if there is none."""
        waiting = [client for client in self._jobs if may_run(client)]
        if not waiting:
            return None
        client = self._served.first(waiting)
        jobs = self._jobs.pop(client)
        job = jobs.popleft()
        if jobs:
            self._jobs[client] = jobs
        self.charge(client, len(job.request.prompt) - job.request.prompt.num_thoughts)
        return job

    def charge(self, client: Client, positions: int) -> None:
        """Counts positions that a client was served."""
        self._served.charge(client, positions)

    def clear(self) -> list[Job]:
        """Removes and returns all jobs."""
        jobs = [job for own in self._jobs.values() for job in own]
        self._jobs.clear()
        return jobs
