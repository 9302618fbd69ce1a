"""A Ray cluster's jobs are reached over HTTP; every fault of connection, token or id is one line, and comes soon."""

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError

from metagrad.cluster.on_ray.address import has_credentials, masked, masked_address, without_proxy
from metagrad.cluster.on_ray.private import ImpatientJobClient, silence_job_client
from metagrad.cluster.run.variables import environment_variables
from metagrad.errors import ConfigurationError, refusal, require

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TOKEN_PLACE = "~/.ray/auth_token or the file that RAY_AUTH_TOKEN_PATH names"


class Address(NamedTuple):
    """Says where the jobs are, and which option or variable said so."""

    url: str
    field: str


class LogInterrupted(Exception):
    """The stream of a log has broken off although its job continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Describes a job to be started."""

    job_id: str
    entrypoint: str
    archive: Path
    """The zip that becomes its working folder."""
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """A job as its cluster describes it."""

    job_id: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    entrypoint: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    started: float | None = None
    """Seconds since 1970."""
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


def resolve_address(given: str | None, environment: Mapping[str, str]) -> Address:
    """Return the dashboard's address: what was given, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.

    On Ray's own command line the variables win.

    Raises:
        ConfigurationError: there is none, it is no HTTP address, or it holds credentials.
    """
    candidates = [("address", given), *((name, environment.get(name)) for name in _ADDRESS_VARIABLES)]
    name, value = next(((name, value) for name, value in candidates if value), ("address", None))
    remedy = "name the dashboard of the cluster's head, --address http://HEAD:8265"
    require(value is not None, name, value, "no cluster is named", f"{remedy}, or set RAY_API_SERVER_ADDRESS")
    assert value is not None
    try:
        parts = urlsplit(value)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that cannot be
        raise refusal(name, masked_address(value), "is not an address", remedy) from None
    rule = "holds credentials, which logs and listings would show"
    secret_remedy = "leave them out, and use token authentication"
    require(not has_credentials(value), name, masked_address(value), rule, secret_remedy)
    require(is_http, name, value, "is not the http address of a Ray dashboard", remedy)
    return Address(value.rstrip("/"), name)


class JobClient:
    """Asks for the jobs of one cluster.

    Every method raises ConfigurationError, in one line, for an address that does not answer or is not that of a Ray
    dashboard, a missing or wrong token, an unknown id, and whatever the cluster refuses.
    """

    def __init__(self, address: Address):
        self.address = address
        silence_job_client()
        os.environ.update(without_proxy(os.environ))
        # For Ray's client the environment wins over its argument.
        with self._explained(), environment_variables({_ADDRESS_VARIABLES[0]: address.url}):
            try:
                self._client = ImpatientJobClient(address.url)
            except (RuntimeError, ValueError, KeyError, TypeError, requests.exceptions.HTTPError) as error:
                if isinstance(error, requests.exceptions.ConnectionError | AuthenticationError):
                    raise
                remedy = "name the dashboard of the cluster's head, mostly at port 8265"
                raise self._refusal("is not a Ray dashboard with jobs", remedy) from error

    def require_version(self) -> None:
        """Refuse a cluster whose Ray is of another minor version than the one here."""
        here, there = ray.__version__, self._client.server_version
        rule = f"runs Ray {there}, and {here} is installed here"
        remedy = f"install ray=={there} here, or {here} there"
        require(here.split(".")[:2] == there.split(".")[:2], self.address.field, self.address.url, rule, remedy)

    def submit(self, submission: Submission) -> None:
        """Upload the archive, unless the cluster has it, and start the job."""
        with self._explained(submission.job_id):
            self._client.submit_job(
                submission_id=submission.job_id,
                entrypoint=submission.entrypoint,
                runtime_env={**submission.runtime_env, "working_dir": str(submission.archive)},
                metadata=dict(submission.metadata),
                entrypoint_num_cpus=submission.num_cpus or None,
                entrypoint_num_gpus=submission.num_gpus or None,
            )

    def find(self, job_id: str) -> JobView | None:
        """Return a job, or None."""
        try:
            return self.job(job_id)
        except UnknownJob:
            return None

    def job(self, job_id: str) -> JobView:
        """Return one job."""
        with self._explained(job_id):
            return _view(self._client.get_job_info(job_id))

    def jobs(self) -> list[JobView]:
        """Return all jobs that were submitted, oldest first."""
        with self._explained():
            found = [_view(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0)

    def log(self, job_id: str) -> str:
        """Return all that a job has printed."""
        with self._explained(job_id):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Ask a job to end."""
        with self._explained(job_id):
            self._client.stop_job(job_id)

    async def stream(self, job_id: str) -> AsyncIterator[str]:
        """Yield what a job prints, from its beginning, until it is over.

        Raises:
            LogInterrupted: the connection was lost.
        """
        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise LogInterrupted(masked(str(error))) from error

    def _refusal(self, rule: str, remedy: str) -> ConfigurationError:
        return refusal(self.address.field, self.address.url, rule, remedy)

    @contextlib.contextmanager
    def _explained(self, job_id: str = "") -> Iterator[None]:
        """Turn Ray's and requests' complaints into ours."""
        try:
            yield
        except AuthenticationError as error:
            raise self._about_token(str(error)) from None  # nothing of it is shown
        except requests.exceptions.Timeout as error:
            remedy = "check HEAD and port, and that no firewall blocks them"
            raise self._refusal("nothing answers there in time", remedy) from error
        except (requests.exceptions.JSONDecodeError, requests.exceptions.HTTPError) as error:
            remedy = "name the dashboard of the cluster's head, mostly at port 8265"
            raise self._refusal("is not a Ray dashboard", remedy) from error
        except (OSError, requests.exceptions.RequestException) as error:
            remedy = "start the cluster (ray start --head), or name the dashboard of its head, mostly at port 8265"
            raise self._refusal("nothing answers there", remedy) from error
        except RuntimeError as error:
            raise self._about_answer(str(error), job_id) from error

    def _about_token(self, text: str) -> ConfigurationError:
        if text.startswith("Authentication failed"):
            remedy = f"put the cluster's own into {_TOKEN_PLACE}"
            return self._refusal("the cluster refuses the token that is used here", remedy)
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            remedy = f"set RAY_AUTH_MODE=token, with the cluster's token in {_TOKEN_PLACE}"
            return self._refusal("the cluster asks for a token, and none is sent", remedy)
        return refusal("RAY_AUTH_MODE", "token", "there is no token here", f"put the cluster's into {_TOKEN_PLACE}")

    def _about_answer(self, text: str, job_id: str) -> ConfigurationError:
        answer = re.match(r"Request failed with status code (\d+): (.*)", text, re.DOTALL)
        status, body = (answer[1], answer[2].strip(" .\n")) if answer else ("", text.strip())
        last = body.splitlines()[-1].strip() if body else ""
        if status == "404" and "does not exist" in body:
            return UnknownJob(f"job = {job_id!r}: is not a job of this cluster; metagrad status lists them")
        if "already exists" in last:
            return refusal("submission-id", job_id, "is the id of another job", "choose another one")
        if status in ("404", "405"):
            return self._refusal("is not a Ray dashboard with jobs", "name the dashboard of the cluster's head")
        remedy = "see dashboard.log and dashboard_agent.log on the cluster's head"
        return self._refusal(f"the cluster cannot do that ({masked(last[:200])})", remedy)


class UnknownJob(ConfigurationError):
    """The cluster has no job of this id."""


def connect(address: str | None) -> JobClient:
    """Return the jobs of the cluster at an address, else of the one that the environment names.

    Raises:
        ConfigurationError: `resolve_address` refuses it, or no dashboard answers there.
    """
    return JobClient(resolve_address(address, os.environ))


def _view(details: Any) -> JobView:
    return JobView(
        job_id=details.submission_id or details.job_id,
        state=str(details.status.value),
        entrypoint=details.entrypoint,
        metadata=details.metadata or {},
        message=details.message or "",
        started=None if details.start_time is None else details.start_time / 1_000,
        exit_code=details.driver_exit_code,
    )
