"""Several jobs at once: filtered lists, groups, favorites, cancelling and deleting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sdstream import Client
from tests.integration.test_http import error_of
from tests.support.jobs import ASYNC, begin, look, wait_for
from tests.support.pictures import png
from tests.support.servers import GENERATIONS, ServerProcess, running_server

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 3}
SLOW: dict[str, Any] = {**QUICK, "prompt": "step=0.1", "sample_steps": 150}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server without jobs."""
    with running_server(tmp_path, engine="fake") as server:
        yield server


def listed(server: ServerProcess, **query: str) -> list[str]:
    """Return the prompts of the jobs that a query finds, newest first."""
    answer = httpx2.get(f"{server.url}/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    return [job["parameters"]["prompt"] for job in answer.json()["data"]]


def test_conditions(server: ServerProcess) -> None:
    """Jobs can be filtered by words, model, time and status.

    An invalid value causes an error, and an unknown name a warning.
    """
    for prompt in ("A Red circle", "a red square", "größe"):
        wait_for(server, begin(server, {**QUICK, "prompt": prompt})["id"], "completed")
    jobs = f"{server.url}/v1/jobs"
    assert listed(server, q="RED") == ["a red square", "A Red circle"]
    assert listed(server, q="red circle", status="completed") == ["A Red circle"]
    assert listed(server, q="GRÖSSE") == ["größe"]
    assert listed(server, q="red", status="failed") == []
    assert listed(server, model="embedded", limit="1") == ["größe"]
    assert listed(server, model="another") == []
    created = look(server, httpx2.get(jobs).json()["last_id"])["created"]
    assert len(listed(server, since=str(round(created, 3)))) >= 2
    assert listed(server, until=str(int(created) - 1)) == []
    assert listed(server, until="2020-01-01") == []
    assert len(listed(server, since="2020-01-01T00:00:00+02:00")) == 3
    for name, value in {
        "since": "yesterday", "until": "1e999", "favorite": "maybe", "status": "over",
        "limit": "0", "q": "a " * 17,
    }.items():  # fmt: skip
        error = error_of(httpx2.get(jobs, params={name: value}))
        assert error["param"] == name, name
    answer = httpx2.get(jobs, params={"zebra": "1"})
    assert answer.json()["warnings"] == ["Unknown field 'zebra' has no effect."]
    assert answer.headers["x-ignored-fields"] == "zebra"
    near = error_of(httpx2.get(jobs, params={"favourite": "1"}))
    assert "'favorite'" in near["message"]


def test_groups(server: ServerProcess) -> None:
    """The jobs of a group, and no others, are found and cancelled together."""
    first = begin(server, {**SLOW, "group": "steps"})
    rest = [begin(server, {**SLOW, "group": "steps"})["id"] for _ in range(2)]
    other = begin(server, {**SLOW, "group": "others"})["id"]
    assert first["group"] == "steps"
    wait_for(server, first["id"], "running")
    with Client(server.url) as client:
        mine = [job["id"] for job in client.jobs.list(group="steps")]
        assert mine == [*reversed(rest), first["id"]]
        assert {*client.jobs.cancel_group("steps")} == {first["id"], *rest}
        assert client.jobs.cancel_group("steps") in ([], [first["id"]])  # it stops within a step
        for job in (first["id"], *rest):
            wait_for(server, job, "cancelled")
        assert client.jobs.cancel_group("steps") == []
    assert look(server, other)["status"] not in ("cancelled", "failed")
    httpx2.post(f"{server.url}/v1/jobs/{other}/cancel")
    for group in ("x" * 129, 7):
        answer = server.post({**QUICK, "group": group}, headers=ASYNC)
        assert error_of(answer)["param"] == "group"


def test_a_group_outlives_the_server(tmp_path: Path) -> None:
    """Groups and favorites survive a restart of the server."""
    with running_server(tmp_path, engine="fake") as server:
        job = begin(server, {**QUICK, "group": "kept"})["id"]
        wait_for(server, job, "completed")
        answer = httpx2.post(f"{server.url}/v1/jobs/{job}", json={"favorite": True})
        assert answer.json()["favorite"] is True
        assert look(server, job)["favorite"] is True
    with running_server(tmp_path, engine="fake") as server:
        found = httpx2.get(f"{server.url}/v1/jobs?group=kept&favorite=true").json()["data"]
        assert [(one["id"], one["group"], one["favorite"]) for one in found] == [
            (job, "kept", True)
        ]


def test_favorites(server: ServerProcess) -> None:
    """A job can be marked as a favorite before and after its end, and unmarked."""
    job = begin(server, {**QUICK, "prompt": "step=0.1"})["id"]
    url = f"{server.url}/v1/jobs/{job}"
    assert httpx2.post(url, json={"favorite": True}).json()["favorite"] is True
    assert wait_for(server, job, "completed")["favorite"] is True
    assert listed(server, favorite="true") == ["step=0.1"]
    assert httpx2.post(url, json={"favorite": False}).json()["favorite"] is False
    assert look(server, job)["favorite"] is False
    assert listed(server, favorite="1") == []
    for body in ({}, {"favorite": "yes"}, {"favorite": 1}):
        assert error_of(httpx2.post(url, json=body))["param"] == "favorite"
    missing = httpx2.post(f"{server.url}/v1/jobs/job_x", json={"favorite": True})
    assert error_of(missing)["reason"] == "job_not_found"


def test_inputs_of_an_edit(server: ServerProcess) -> None:
    """The inputs of an edit can be downloaded unchanged, as images only, until it is deleted."""
    files = {"image": ("a.png", png(64, 64, "red")), "mask": ("m.png", png(64, 64))}
    answer = httpx2.post(f"{server.url}/v1/images/edits", files=files, data={"prompt": "a cat"})
    assert answer.status_code == 200, answer.text
    job = httpx2.get(f"{server.url}/v1/jobs").json()["data"][0]
    assert [(one["name"], one["bytes"]) for one in job["inputs"]] == [
        (name, len(data)) for name, (_, data) in files.items()
    ]
    for one in job["inputs"]:
        file = httpx2.get(one["url"])
        assert file.content == files[one["name"]][1]
        assert file.headers["content-type"] == "image/png"
        assert file.headers["x-content-type-options"] == "nosniff"
    assert error_of(httpx2.get(f"{job['status_url']}/inputs/other"))["code"] == 404
    httpx2.delete(job["status_url"])
    assert httpx2.get(job["inputs"][0]["url"]).status_code == 404
    plain = wait_for(server, begin(server, QUICK)["id"], "completed")
    assert plain["inputs"] == []


def test_several_are_deleted(server: ServerProcess) -> None:
    """Several jobs, even running ones, are deleted with their images; unknown ids are listed."""
    ended = wait_for(server, begin(server, QUICK)["id"], "completed")
    running = begin(server, SLOW)["id"]
    kept = begin(server, {**QUICK, "prompt": "kept"})["id"]
    ids = [ended["id"], running, "job_nobody", ended["id"]]
    answer = httpx2.post(f"{server.url}/v1/jobs/delete", json={"ids": ids})
    assert answer.json()["ids"] == [ended["id"], running]
    assert answer.json()["missing"] == ["job_nobody"]
    assert httpx2.get(ended["images"][0]["url"]).status_code == 404
    wait_for(server, kept, "completed")
    assert listed(server) == ["kept"]
    many = httpx2.post(f"{server.url}/v1/jobs/cancel", json={"ids": ["x"] * 1001})
    assert error_of(many)["param"] == "ids"
    for act in ("cancel", "delete"):
        url, headers = f"{server.url}/v1/jobs/{act}", {"Content-Type": "application/json"}
        half = httpx2.post(url, content=b'{"ids": ["\\ud800", "\\u0000"]}', headers=headers)
        assert half.status_code == 200
        assert len(half.json()["missing"]) == 2
        half = httpx2.post(url, content=b'{"group": "\\ud800"}', headers=headers)
        assert error_of(half)["param"] == "group"
    for body in ({}, {"ids": [], "group": "x"}, {"ids": "x"}, {"ids": [7]}):
        answer = httpx2.post(f"{server.url}/v1/jobs/delete", json=body)
        assert error_of(answer)["param"] == "ids"


def test_jobs_of_another_key(tmp_path: Path) -> None:
    """Another key cannot find, cancel, delete or mark a job."""
    first, second = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
    with running_server(tmp_path, engine="fake", api_keys="key-a,key-b") as server:
        job = begin(server, {**SLOW, "group": "mine"}, first)["id"]
        for body in ({"ids": [job]}, {"group": "mine"}):
            for act in ("cancel", "delete"):
                answer = httpx2.post(f"{server.url}/v1/jobs/{act}", json=body, headers=second)
                assert answer.json()["ids"] == []
        mark = httpx2.post(f"{server.url}/v1/jobs/{job}", json={"favorite": True}, headers=second)
        assert mark.status_code == 404
        assert look(server, job, first)["status"] in ("queued", "loading", "running")


@pytest.mark.parametrize("count", [400])
def test_many_jobs_are_paged_through(server: ServerProcess, count: int) -> None:
    """A group with more jobs than a page is deleted completely."""
    for _ in range(count // 10):
        with httpx2.Client() as client:
            for _ in range(10):
                body = {**QUICK, "sample_steps": 1, "group": "crowd"}
                while (
                    client.post(server.url + GENERATIONS, json=body, headers=ASYNC).status_code
                    == 429
                ):
                    time.sleep(0.05)
    answer = httpx2.post(f"{server.url}/v1/jobs/delete", json={"group": "crowd"}, timeout=60)
    assert len(answer.json()["ids"]) == count
    assert listed(server) == []
