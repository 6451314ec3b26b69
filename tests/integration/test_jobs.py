"""Jobs that outlive their connections, over real HTTP, with the fake engine."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.test_http import error_of, image_of
from tests.support.jobs import (
    ASYNC,
    ENDINGS,
    EventStream,
    begin,
    events_of,
    eventsource_path,
    look,
    wait_for,
)
from tests.support.pictures import png
from tests.support.servers import GENERATIONS, Call, ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 3}
#: Two seconds, long enough to do something meanwhile.
LONG: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 20}
ENDLESS: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 150, "n": 10}

KEY_A = {"Authorization": "Bearer key-a"}
KEY_B = {"Authorization": "Bearer key-b"}


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small queues and two keys, one of which may use high priority."""
    with running_server(
        tmp_path_factory.mktemp("keyed"),
        engine="fake",
        api_keys="key-a,key-b",
        high_priority_keys="key-a",
        queue_images=8,
        queue_images_per_key=5,
    ) as server:
        yield server


def cancel(
    server: ServerProcess, job: dict[str, Any], headers: dict[str, str] | None = None
) -> httpx2.Response:
    """Send a POST to a job's cancel_url."""
    return httpx2.post(job["cancel_url"], headers=headers, timeout=20)


def generations(server: ServerProcess) -> float:
    """Return the number of jobs that have ended."""
    return server.metric("sdstream_jobs_total")


# --- background jobs ----------------------------------------------------------------------------


def test_preferences_on_several_lines(fake_server: ServerProcess) -> None:
    """Several Prefer headers count as one list."""
    headers = [("Prefer", "wait=1"), ("Prefer", "Respond-Async")]
    answer = httpx2.post(fake_server.url + GENERATIONS, json=QUICK, headers=headers)
    assert answer.status_code == 202


def test_a_background_job_from_202_to_its_result(fake_server: ServerProcess) -> None:
    """A background job gets a 202 at once; its links work, and its result is the plain answer."""
    answer = fake_server.post({**QUICK, "seed": 5, "n": 2}, headers=ASYNC)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == job["status_url"]
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["X-Job-Id"] == job["id"]
    assert (job["object"], job["background"], job["error"]) == ("image.job", True, None)
    assert job["parameters"]["seed"] == 5

    done = wait_for(fake_server, job["id"], *ENDINGS)
    assert (done["status"], done["progress"], done["queue_position"]) == ("completed", 100.0, None)
    assert done["attempts"] == 1
    assert done["created"] <= done["started"] <= done["ended"]
    assert done["usage"]["output_tokens"] > 0
    assert [(i["index"], i["seed"], i["width"]) for i in done["images"]] == [(0, 5, 64), (1, 6, 64)]

    result = httpx2.get(done["result_url"]).json()
    plain = fake_server.post({**QUICK, "seed": 5, "n": 2}).json()
    assert {*result} == {*plain}
    assert [item["b64_json"] for item in result["data"]] == [i["b64_json"] for i in plain["data"]]
    assert result["parameters"] == plain["parameters"]
    for image, item in zip(done["images"], result["data"], strict=True):
        file = httpx2.get(image["url"])
        assert file.content == base64.b64decode(item["b64_json"])
        assert len(file.content) == image["bytes"]
    links = httpx2.get(done["result_url"], params={"response_format": "url"}).json()["data"]
    assert [item["url"] for item in links] == [image["url"] for image in done["images"]]
    both = httpx2.get(done["result_url"], params={"response_format": "both"}).json()["data"]
    assert [item["url"] for item in both] == [item["url"] for item in links]
    assert [item["b64_json"] for item in both] == [i["b64_json"] for i in plain["data"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATIONS, {"json": QUICK}),
        ("/v1-openai/image/generate", {"json": QUICK}),
        ("/v3/images/generations", {"json": QUICK}),
        ("/v1/images/edits", {"data": QUICK, "files": {"image": png(64, 64)}}),
        ("/v1/images/variations", {"data": {"steps": "2"}, "files": {"image": png(64, 64)}}),
        (
            "/v1/images/inpainting",
            {"data": QUICK, "files": {"image": png(64, 64), "mask_image": png(64, 64)}},
        ),
        (
            "/inference/v1/workflows/accounts/fireworks/models/default/text_to_image",
            {"json": {"prompt": "a circle", "steps": 2}},
        ),
        ("/sdapi/v1/txt2img", {"json": {"prompt": "a circle", "steps": 2}}),
    ],
)
def test_every_route_that_draws_takes_it(
    fake_server: ServerProcess, path: str, body: dict[str, Any]
) -> None:
    """Every route that generates images accepts Prefer: respond-async."""
    answer = httpx2.post(fake_server.url + path, headers=ASYNC, timeout=20, **body)
    assert answer.status_code == 202, answer.text
    done = wait_for(fake_server, answer.json()["id"], *ENDINGS)
    assert done["status"] == "completed"


def test_a_result_that_is_not_there_yet(fake_server: ServerProcess) -> None:
    """An unfinished result gets a 202 with Retry-After; a cancelled job's result is its error."""
    job = begin(fake_server, LONG)
    early = httpx2.get(job["result_url"])
    assert early.status_code == 202
    assert int(early.headers["Retry-After"]) >= 1
    assert early.json()["id"] == job["id"]
    cancel(fake_server, job)
    wait_for(fake_server, job["id"], "cancelled")
    late = httpx2.get(job["result_url"])
    assert late.status_code == 499
    assert error_of(late)["reason"] == "cancelled"


def test_other_clients_may_watch_a_plain_call(fake_server: ServerProcess) -> None:
    """Another client can watch a plain call's job, which ends when its own client leaves."""
    call = Call(fake_server, {**LONG, "stream": True})
    job = next(call.events())["job_id"]
    seen = look(fake_server, job)
    assert (seen["background"], seen["status"]) in [(False, "queued"), (False, "running")]
    with EventStream(fake_server, f"/v1/jobs/{job}/events") as stream:
        events = stream.events()
        next(events)
        call.leave()
        assert [*events][-1].name == "cancelled"


def test_on_disconnect_continue(fake_server: ServerProcess) -> None:
    """A job with on_disconnect=continue completes after its client leaves."""
    call = Call(
        fake_server, {**LONG, "sample_steps": 6, "stream": True, "on_disconnect": "continue"}
    )
    job = next(call.events())["job_id"]
    call.leave()
    assert wait_for(fake_server, job, *ENDINGS)["status"] == "completed"


# --- lists --------------------------------------------------------------------------------------


def test_pages_of_jobs(tmp_path: Path) -> None:
    """Jobs are listed newest first, with a limit, after an id, or by status."""
    with running_server(tmp_path, engine="fake") as server:
        quick = [begin(server, QUICK)["id"] for _ in range(3)]
        wait_for(server, quick[-1], "completed")
        endless = begin(server, ENDLESS)["id"]
        wait_for(server, endless, "running")
        waiting = begin(server, QUICK)["id"]

        def ids(**query: Any) -> Any:
            page = httpx2.get(f"{server.url}/v1/jobs", params=query).json()
            found = [job["id"] for job in page["data"]]
            assert (page["first_id"], page["last_id"]) == (found[0], found[-1])
            return found, page["has_more"]

        everything = [waiting, endless, *reversed(quick)]
        assert ids() == (everything, False)
        assert ids(limit=2) == (everything[:2], True)
        assert ids(limit=3, after=endless) == (everything[2:], False)
        assert ids(status="completed", limit=2) == (everything[2:4], True)
        assert ids(status="queued,running") == (everything[:2], False)
        page = httpx2.get(f"{server.url}/v1/jobs", params={"status": "running"}).json()
        assert page["data"][0]["steps"] == 150
        empty = httpx2.get(f"{server.url}/v1/jobs", params={"status": "failed"}).json()
        assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"limit": "0"}, 400, "limit"),
        ({"limit": "101"}, 400, "limit"),
        ({"limit": "x"}, 400, "limit"),
        ({"limit": "0100999999"}, 400, "limit"),
        ({"limit": "0001" + "0" * 5000}, 400, "limit"),
        ({"limit": "٣"}, 400, "limit"),
        ({"status": "sleeping"}, 400, "status"),
        ({"after": "job_nobody"}, 404, "after"),
    ],
)
def test_bad_pages(
    fake_server: ServerProcess, query: dict[str, str], status: int, param: str
) -> None:
    """An invalid parameter of a list is named in the error."""
    answer = httpx2.get(f"{fake_server.url}/v1/jobs", params=query)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/result"), ("POST", "/cancel")],
)
def test_unknown_jobs(fake_server: ServerProcess, method: str, path: str) -> None:
    """An unknown job gets a 404 with the reason job_not_found."""
    answer = httpx2.request(method, f"{fake_server.url}/v1/jobs/job_nobody{path}")
    assert (answer.status_code, error_of(answer)["reason"]) == (404, "job_not_found")


# --- events -------------------------------------------------------------------------------------


def test_events_from_beginning_to_end(fake_server: ServerProcess) -> None:
    """The first and last events contain the whole job, the others changes; no number is missing."""
    job = begin(fake_server, {**LONG, "sample_steps": 4, "n": 2})
    with EventStream(fake_server, f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        events = list(stream.events())
        assert stream.retry == 2000
    first, *_, last = events
    assert {*first.data} == {*last.data} == {*job}
    assert last.name == "completed"
    assert last.data == look(fake_server, job["id"])
    numbers = [event.number for event in events]
    assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    copy = dict(first.data)
    for event in events:
        assert event.data["id"] == job["id"]
        copy |= event.data
        assert (event.name == "error") is False
    assert copy.items() >= last.data.items()
    shares = [e.data["progress"] for e in events if "progress" in e.data]
    assert shares == sorted(shares)
    assert [share for share in shares if share >= 100] == [100.0]
    images = [e.data for e in events if e.name == "image"]
    assert [image["index"] for image in images] == [0, 1]
    assert all(httpx2.get(image["url"]).status_code == 200 for image in images)


def test_previews(fake_server: ServerProcess) -> None:
    """Each step has a preview as a data URL, if requested."""
    body = {**LONG, "sample_steps": 4, "stream_options": {"preview": True}}
    events = events_of(fake_server, begin(fake_server, body)["id"])
    previews = [event.data for event in events if event.name == "preview"]
    assert [preview["step"] for preview in previews] == [1, 2, 3, 4]
    prefix = "data:image/png;base64,"
    assert all(preview["url"].startswith(prefix) for preview in previews)
    assert image_of({"b64_json": previews[0]["url"].removeprefix(prefix)}).size == (8, 8)


def test_speed_and_time_left_are_measured(fake_server: ServerProcess) -> None:
    """Events contain the measured speed, and a remaining time that falls to almost zero."""
    events = events_of(fake_server, begin(fake_server, {**LONG, "sample_steps": 12})["id"])
    told = [e.data for e in events if e.data.get("steps_per_second")]
    assert 1 < told[-1]["steps_per_second"] < 20  # late events may come close together
    left = [data["eta_seconds"] for data in told if data["eta_seconds"] is not None]
    assert left[0] > left[-1]
    assert left[-1] < 0.5


def test_nothing_is_told_twice_after_the_end(fake_server: ServerProcess) -> None:
    """A reconnect after the last event gets a 204; an earlier one gets the missing events."""
    job = begin(fake_server, QUICK)["id"]
    events = events_of(fake_server, job)
    path = f"/v1/jobs/{job}/events"
    with EventStream(fake_server, path, {"Last-Event-ID": events[-1].id}) as stream:
        assert stream.answer.status == 204
    with EventStream(fake_server, f"{path}?last_event_id={events[-1].id}") as stream:
        assert stream.answer.status == 204
    with EventStream(fake_server, path) as stream:
        assert [event.name for event in stream.events()] == ["completed"]
    before_image = events[-3].id
    with EventStream(fake_server, path, {"Last-Event-ID": before_image}) as stream:
        assert [event.id for event in stream.events()] == [e.id for e in events[-2:]]


def test_a_stream_dropped_anywhere_goes_on_without_gap_or_repetition(
    fake_server: ServerProcess,
) -> None:
    """A client that reconnects after each event gets every event once, of one generation."""
    before = generations(fake_server)
    job = begin(fake_server, {**LONG, "prompt": "step=0.03", "sample_steps": 100})["id"]
    seen: list[Any] = []
    for _ in range(300):
        headers = {"Last-Event-ID": seen[-1].id} if seen else {}
        with EventStream(fake_server, f"/v1/jobs/{job}/events", headers) as stream:
            if stream.answer.status == 204:
                break
            seen.append(next(stream.events()))
    else:
        pytest.fail("no end")
    assert len(seen) > 100
    assert all(b.number == a.number + 1 for a, b in pairwise(seen))
    assert seen[-1].name == "completed"
    assert generations(fake_server) == before + 1


@pytest.mark.parametrize("given", ["x", "-1", "job_a", "job_a:", "1:2", "9" * 30])
def test_event_ids_that_are_none(fake_server: ServerProcess, given: str) -> None:
    """An invalid Last-Event-ID gets a 400 that names the header."""
    job = begin(fake_server, QUICK)["id"]
    answer = httpx2.get(f"{fake_server.url}/v1/jobs/{job}/events", headers={"Last-Event-ID": given})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "Last-Event-ID")


def test_a_page_may_ask_for_events_by_what_it_wants(fake_server: ServerProcess) -> None:
    """A GET with a prompt creates one job, however often the browser reconnects."""
    before = generations(fake_server)
    path = eventsource_path(prompt="step=0.05", steps=10, size="64x64", seed=3, t=123, n=1)
    seen: list[Any] = []
    for _ in range(100):
        headers = {"Last-Event-ID": seen[-1].id} if seen else {}
        with EventStream(fake_server, path, headers) as stream:
            if stream.answer.status == 204:
                break
            for event in stream.events():
                seen.append(event)
                if len(seen) % 4 == 0:
                    break
    job = seen[0].data["id"]
    assert {event.id.partition(":")[0] for event in seen} == {job}
    assert all(b.number == a.number + 1 for a, b in pairwise(seen))
    assert seen[-1].name == "completed"
    assert seen[-1].data["parameters"]["sample_steps"] == 10
    assert generations(fake_server) == before + 1


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "size": "9x64"}, "size"),
        ({"prompt": "a", "steps": "many"}, "steps"),
        ({"prompt": "a", "response_format": "b64_json"}, "response_format"),
        ({"prompt": "a", "on_disconnect": "cancel"}, "on_disconnect"),
        ({"prompt": "a", "image": "x.png"}, "image"),
        ({"prompt": "a", "lora": "x"}, "lora"),
    ],
)
def test_options_in_a_query_are_checked(
    fake_server: ServerProcess, options: dict[str, str], param: str
) -> None:
    """Options in a query are validated like those in a body, before the stream begins."""
    answer = httpx2.get(fake_server.url + eventsource_path(**options))
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_a_head_makes_and_holds_nothing(fake_server: ServerProcess) -> None:
    """HEAD creates no job and holds no stream open."""
    before = fake_server.metric("sdstream_accepted_jobs_total")
    answer = httpx2.head(fake_server.url + eventsource_path(prompt="a"))
    assert (answer.status_code, "GET" in answer.headers["Allow"]) == (405, True)
    assert fake_server.metric("sdstream_accepted_jobs_total") == before
    job = begin(fake_server, LONG)
    answer = httpx2.head(job["events_url"], timeout=1)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    cancel(fake_server, job)


# --- cancel and delete --------------------------------------------------------------------------


def test_cancel(fake_server: ServerProcess) -> None:
    """A queued job ends at once and a running one within a step; an ended job is not changed."""
    running, waiting = begin(fake_server, ENDLESS), begin(fake_server, QUICK)
    wait_for(fake_server, running["id"], "running")
    answer = cancel(fake_server, waiting).json()
    assert (answer["status"], answer["cancel"]) == ("cancelled", "done")
    assert look(fake_server, waiting["id"])["attempts"] == 0
    assert cancel(fake_server, running).json()["cancel"] in ("stopping", "done")
    ended = wait_for(fake_server, running["id"], *ENDINGS, seconds=5)
    assert ended["status"] == "cancelled"
    assert ended["error"]["reason"] == "cancelled"
    assert cancel(fake_server, running).json()["cancel"] == "already_ended"


def test_delete(fake_server: ServerProcess) -> None:
    """A deleted job and its images no longer exist; an unfinished job is stopped first."""
    done = wait_for(fake_server, begin(fake_server, QUICK)["id"], "completed")
    running = begin(fake_server, ENDLESS)
    wait_for(fake_server, running["id"], "running")
    for job in (done, running):
        answer = httpx2.delete(job["status_url"], timeout=20)
        assert answer.json() == {
            "id": job["id"], "object": "image.job.deleted", "deleted": True
        }  # fmt: skip
        assert httpx2.get(job["status_url"]).status_code == 404
    assert httpx2.get(done["images"][0]["url"]).status_code == 404
    assert fake_server.post(QUICK).status_code == 200


# --- the same request twice ---------------------------------------------------------------------


def test_an_idempotency_key_is_one_generation(fake_server: ServerProcess) -> None:
    """Requests with the same Idempotency-Key, at once or later, get the same job and images."""
    before = generations(fake_server)
    headers = {"Idempotency-Key": "ten at once"}
    body = {**QUICK, "prompt": "step=0.05"}
    with ThreadPoolExecutor(10) as pool:
        answers = [*pool.map(lambda _: fake_server.post(body, headers=headers), range(10))]
    answers.append(fake_server.post(body, headers=headers))
    # The same request in another spelling.
    answers.append(fake_server.post({**body, "user": None, "n": 1, "seed": -1}, headers=headers))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["X-Job-Id"] for answer in answers}) == 1
    assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
    assert generations(fake_server) == before + 1


def test_an_idempotency_key_of_another_request(fake_server: ServerProcess) -> None:
    """An Idempotency-Key that is reused for another request gets a 422; its job is not changed."""
    headers = {"Idempotency-Key": "once"}
    first = fake_server.post(QUICK, headers=headers)
    other = fake_server.post({**QUICK, "seed": 1}, headers=headers)
    assert (other.status_code, error_of(other)["reason"]) == (422, "idempotency_key_reused")
    again = fake_server.post(QUICK, headers=headers)
    assert again.headers["X-Job-Id"] == first.headers["X-Job-Id"]
    refused = fake_server.post(QUICK, headers={"Idempotency-Key": "x" * 256})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize("stream", [False, True])
def test_coming_back_for_a_job_that_an_earlier_life_began(tmp_path: Path, stream: bool) -> None:
    """A request repeated after a restart gets all images, even those from before the restart."""
    headers = {"Idempotency-Key": "over a restart"}
    body = {**LONG, "sample_steps": 8, "n": 2, "stream": stream}
    with running_server(tmp_path, engine="fake") as server:
        call = Call(server, body, headers)
        job = _first_job(server)
        wait_until(lambda: len(look(server, job)["images"]) == 1, 20, "no image came")
        server.stop(signal.SIGKILL)
        call.leave()
    with running_server(tmp_path, engine="fake") as server:
        wait_for(server, job, "running")
        if stream:
            items = [
                item for event in Call(server, body, headers).events() for item in event["data"]
            ]
            seeds = [item["seed"] for item in items if item["finish_reason"] == "stop"]
        else:
            answer = server.post(body, headers=headers)
            assert answer.status_code == 200, answer.text
            seeds = [item["seed"] for item in answer.json()["data"]]
        parameters = look(server, job)["parameters"]
    assert seeds == [parameters["seed"], parameters["seed"] + 1]


def _first_job(server: ServerProcess) -> str:
    url = f"{server.url}/v1/jobs"
    wait_until(lambda: bool(httpx2.get(url).json()["data"]), 10, "no job")
    job: str = httpx2.get(url).json()["data"][0]["id"]
    return job


def test_an_idempotency_key_on_two_routes(fake_server: ServerProcess) -> None:
    """An Idempotency-Key that is reused on another route gets a 422."""
    headers, files = {"Idempotency-Key": "two routes"}, {"image": png(64, 64)}
    url = f"{fake_server.url}/v1/images"
    first = httpx2.post(f"{url}/variations", files=files, headers=headers, timeout=20)
    other = httpx2.post(f"{url}/upscales", files=files, headers=headers, timeout=20)
    assert (first.status_code, other.status_code) == (200, 422)


def test_who_was_cut_off_comes_back_for_the_same_job(fake_server: ServerProcess) -> None:
    """A job with an Idempotency-Key continues without its client, which can resume its stream."""
    headers = {"Idempotency-Key": "cut off"}
    body = {**LONG, "sample_steps": 6, "stream": True}
    call = Call(fake_server, body, headers)
    job = next(call.events())["job_id"]
    call.leave()
    back = [*Call(fake_server, body, headers).events()]
    assert {event["job_id"] for event in back} == {job}
    assert back[-1]["data"][0]["b64_json"]
    wait_for(fake_server, job, "completed")
    replayed = [*Call(fake_server, body, headers).events()]
    assert replayed[-1]["data"][0]["b64_json"] == back[-1]["data"][0]["b64_json"]


# --- whose jobs ---------------------------------------------------------------------------------


def test_keys_see_their_own_jobs_only(keyed_server: ServerProcess) -> None:
    """A key cannot list, read, follow, cancel or delete another key's job."""
    job = begin(keyed_server, QUICK, KEY_A)
    url = f"{keyed_server.url}/v1/jobs"
    assert job["id"] in httpx2.get(url, headers=KEY_A).text
    assert job["id"] not in httpx2.get(url, headers=KEY_B).text
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")):
        answer = httpx2.request(method, f"{url}/{job['id']}{path}", headers=KEY_B)
        assert answer.status_code == 404
        assert httpx2.request(method, f"{url}/{job['id']}{path}").status_code == 401


def test_tokens_stand_for_keys_in_urls(keyed_server: ServerProcess) -> None:
    """A token in a URL replaces the key only for GETs of the owner's jobs and images."""
    refused = httpx2.post(f"{keyed_server.url}/v1/tokens")
    assert refused.status_code == 401
    answer = httpx2.post(f"{keyed_server.url}/v1/tokens", headers=KEY_A).json()
    token = {"token": answer["token"]}
    assert 3500 < answer["expires"] - time.time() <= 3600
    with EventStream(
        keyed_server, eventsource_path(prompt="a", steps=2, size="64x64", **token)
    ) as stream:
        *_, last = stream.events()
    assert last.name == "completed"
    assert httpx2.get(last.data["images"][0]["url"], params=token).status_code == 200
    assert httpx2.get(last.data["images"][0]["url"]).status_code == 401
    assert httpx2.get(last.data["status_url"], params=token).status_code == 200
    assert httpx2.delete(last.data["status_url"], params=token).status_code == 401
    assert keyed_server.post(QUICK, params=token).status_code == 401
    wrong = {"token": answer["token"][:-4] + "AAAA"}
    assert httpx2.get(last.data["status_url"], params=wrong).status_code == 401
    assert answer["token"] not in keyed_server.log.read_text()


def test_high_priority_is_for_some_keys(keyed_server: ServerProcess) -> None:
    """High priority gets a 403 for keys without permission; low priority is open to all."""
    answer = keyed_server.post({**QUICK, "priority": "high"}, headers=KEY_B)
    assert answer.status_code == 403
    assert (error_of(answer)["reason"], error_of(answer)["param"]) == (
        "priority_not_allowed", "priority"
    )  # fmt: skip
    assert keyed_server.post({**QUICK, "priority": "high"}, headers=KEY_A).status_code == 200
    assert keyed_server.post({**QUICK, "priority": "low"}, headers=KEY_B).status_code == 200


def test_the_queue_is_fair_and_bounded_by_key(keyed_server: ServerProcess) -> None:
    """The queue limits each key's images and takes turns between keys."""
    running = begin(keyed_server, ENDLESS, KEY_A)
    wait_until(
        lambda: look(keyed_server, running["id"], KEY_A)["status"] == "running", 10, "not begun"
    )
    many = [begin(keyed_server, QUICK, KEY_A)["id"] for _ in range(4)]
    single = begin(keyed_server, QUICK, KEY_B)
    assert single["queue_position"] == 1  # a job of the other key is running already
    # A reported position does not get worse when another key takes its turn …
    told = [look(keyed_server, job, KEY_A)["queue_position"] for job in many]
    assert told == [1, 2, 3, 4]
    # … but it does for a job with a higher priority.
    urgent = begin(keyed_server, {**QUICK, "priority": "high"}, KEY_A)
    assert urgent["queue_position"] == 1
    told = [look(keyed_server, job, KEY_A)["queue_position"] for job in many]
    assert told == [3, 4, 5, 6]
    full = keyed_server.post(QUICK, headers=KEY_A)
    assert (full.status_code, error_of(full)["reason"]) == (429, "queue_full")
    assert 1 <= int(full.headers["Retry-After"]) <= 120
    cancel(keyed_server, running, KEY_A)
    ends = {}
    for job, key in [(urgent["id"], KEY_A), (single["id"], KEY_B), *((j, KEY_A) for j in many)]:
        ends[job] = events_of(keyed_server, job, key)[-1].data["started"]
    order = sorted(ends, key=lambda job: ends[job])
    assert order == [urgent["id"], single["id"], *many]


def test_a_full_share_waits_for_its_own_images(tmp_path: Path) -> None:
    """Retry-After for a key with a full share includes the time of other keys' images."""
    settings: dict[str, Any] = {"api_keys": "key-a,key-b", "queue_images_per_key": 8}
    body = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 30}
    with running_server(tmp_path, engine="fake", **settings) as server:
        assert server.post({**body, "sample_steps": 3}, headers=KEY_A).status_code == 200
        running = begin(server, body, KEY_B)
        wait_until(
            lambda: look(server, running["id"], KEY_B)["status"] == "running", 10, "not begun"
        )
        begin(server, {**body, "n": 8}, KEY_B)
        begin(server, {**body, "n": 8}, KEY_A)
        full = server.post(body, headers=KEY_A)
        assert (full.status_code, error_of(full)["reason"]) == (429, "queue_full")
        # An image takes three seconds, and eight images go first.
        assert int(full.headers["Retry-After"]) > 20


# --- origins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
)
def test_pages_of_other_origins_cannot_draw(
    fake_server: ServerProcess, headers: dict[str, str]
) -> None:
    """A page of another origin can generate neither with a form nor with an EventSource.

    Its GETs are served, but CORS hides the answers.
    """
    answer = fake_server.post(QUICK, headers=headers)
    assert (answer.status_code, error_of(answer)["reason"]) == (403, "cross_origin")
    answer = httpx2.get(fake_server.url + eventsource_path(prompt="a"), headers=headers)
    assert answer.status_code == 403
    assert httpx2.get(f"{fake_server.url}/v1/models", headers=headers).status_code == 200


def test_origins_that_are_ours(fake_server: ServerProcess, tmp_path: Path) -> None:
    """The server's own page and the allowed origins may generate."""
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": fake_server.url}, {}):
        assert fake_server.post(QUICK, headers=headers).status_code == 200
    ours = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    with running_server(tmp_path, engine="fake", cors_origins=ours["Origin"]) as server:
        assert server.post(QUICK, headers=ours).status_code == 200
        other = {**ours, "Origin": "https://evil.example"}
        assert server.post(QUICK, headers=other).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "[::1"]
)
def test_names_that_lead_to_this_machine(fake_server: ServerProcess, host: str) -> None:
    """A host name that resolves to the loopback address is rejected, except on probes."""
    page = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    answers = [
        fake_server.post(QUICK, headers=page),
        httpx2.get(f"{fake_server.url}/v1/jobs", headers=page),
        httpx2.delete(f"{fake_server.url}/v1/jobs/job_nobody", headers=page),
        httpx2.get(f"{fake_server.url}/sdapi/v1/progress", headers=page),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "host_not_allowed")
        assert "--public-url" in answer.json()["detail"]
    assert httpx2.get(f"{fake_server.url}/readyz", headers=page).status_code == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "LOCALHOST:8000", "localhost.", "a.localhost", "[::1]:8000", "10.0.0.1"]
)
def test_names_of_this_machine(fake_server: ServerProcess, host: str) -> None:
    """Addresses and localhost are accepted, because they cannot resolve to anything else."""
    assert httpx2.get(f"{fake_server.url}/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [{"public_url": "http://Pictures.example/"}, {"host": "0.0.0.0"}, {"api_keys": "key-a"}],
)
def test_other_names_are_allowed(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Other host names are accepted with a public URL, with keys, or on all interfaces."""
    with running_server(tmp_path, engine="fake", **settings) as server:
        headers = {"Host": "pictures.example:8000", **KEY_A}
        assert httpx2.get(f"{server.url}/v1/jobs", headers=headers).status_code == 200
        # Every machine can connect to 0.0.0.0, so the log has a warning.
        warned = server.log_lines("WARNING sdstream.web.server No API key is set")
        assert len(warned) == ("host" in settings)


# --- disks --------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk rejects new jobs with a 507, while finished jobs are still served."""
    with running_server(tmp_path, engine="fake") as server:
        done = wait_for(server, begin(server, QUICK)["id"], "completed")
    with running_server(tmp_path, engine="fake", min_free_mb=2**40) as server:
        answer = server.post(QUICK)
        assert (answer.status_code, error_of(answer)["reason"]) == (507, "storage_full")
        assert answer.headers["x-should-retry"] == "false"
        result = httpx2.get(f"{server.url}/v1/jobs/{done['id']}/result")
        assert result.status_code == 200


def test_jobs_expire_with_their_images(tmp_path: Path) -> None:
    """An expired job is removed from the API, and its images from the disk."""
    with running_server(tmp_path, engine="fake", job_ttl_seconds=1) as server:
        job = wait_for(server, begin(server, QUICK)["id"], "completed")
        time.sleep(1.5)
        server.post(QUICK)  # expired jobs are removed when another job ends
        wait_until(lambda: httpx2.get(job["images"][0]["url"]).status_code == 404, 5, "still there")
        wait_until(
            lambda: len([*(tmp_path / "data" / "images").iterdir()]) == 1, 5, "files are left"
        )
        for link in ("status_url", "events_url", "result_url"):
            gone = httpx2.get(job[link])
            assert (gone.status_code, error_of(gone)["reason"]) == (404, "job_not_found")


def test_two_servers_cannot_share_a_folder(fake_server: ServerProcess) -> None:
    """A second server on the same data folder exits with an error message."""
    with running_server(fake_server.log.parent, wait=False, engine="fake") as second:
        assert second.process.wait(90) == 78
        assert "in use by another server" in second.log.read_text()


# --- deaths -------------------------------------------------------------------------------------


def test_a_job_whose_worker_is_killed_gets_a_second_try(fake_server: ServerProcess) -> None:
    """A job whose worker is killed keeps its images and continues in a second attempt."""
    job = begin(fake_server, {**LONG, "sample_steps": 10, "n": 2, "seed": 1})
    with EventStream(fake_server, f"/v1/jobs/{job['id']}/events") as stream:
        events = stream.events()
        seen = []
        for event in events:
            seen.append(event)
            if event.name == "image":
                pid = fake_server.worker_pid()
                assert pid is not None
                signal_worker(pid)
                break
        seen += events
    last = seen[-1]
    assert (last.name, last.data["attempts"]) == ("completed", 2)
    assert [event.data["index"] for event in seen if event.name == "image"] == [0, 1]
    assert [image["seed"] for image in last.data["images"]] == [1, 2]
    assert all(b.number == a.number + 1 for a, b in pairwise(seen))


def test_a_job_that_kills_its_worker_twice_is_given_up(fake_server: ServerProcess) -> None:
    """A job that crashes its worker twice fails; a waiting client gets the error at once."""
    job = begin(fake_server, {**QUICK, "prompt": "crash=2"})
    failed = wait_for(fake_server, job["id"], *ENDINGS, seconds=60)
    assert (failed["status"], failed["attempts"]) == ("failed", 2)
    assert failed["error"]["reason"] == "worker_crashed"
    # A finished job between the crashes: a model that only crashes makes the server unready.
    assert fake_server.post(QUICK).status_code == 200
    answer = fake_server.post({**QUICK, "prompt": "crash=2"})
    assert answer.status_code == 500
    assert fake_server.post(QUICK).status_code == 200
    fake_server.wait_ready()


def signal_worker(pid: int) -> None:
    """Kill a worker as the kernel does when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def test_a_restart_lays_background_jobs_aside(tmp_path: Path) -> None:
    """SIGTERM defers background jobs, which complete after restarts in their first attempt."""
    with running_server(tmp_path, engine="fake", grace_seconds=0) as server:
        running = begin(server, LONG)["id"]
        waiting = begin(server, {**QUICK, "seed": 9})["id"]
        call = Call(server, QUICK)
        wait_for(server, running, "running")
        with EventStream(server, f"/v1/jobs/{running}/events") as stream:
            events = stream.events()
            seen = [next(events)]
            server.process.send_signal(signal.SIGTERM)
            seen += events
        assert call.answer.status == 503
        assert seen[-1].name == "queued"
        assert server.process.wait(90) == 143 or server.process.returncode == -15
    for _ in range(2):
        with running_server(tmp_path, engine="fake", grace_seconds=0) as server:
            wait_for(server, running, "running")
            with EventStream(
                server, f"/v1/jobs/{running}/events", {"Last-Event-ID": seen[-1].id}
            ) as stream:
                again = next(stream.events())
                assert again.number > seen[-1].number
    with running_server(tmp_path, engine="fake") as server:
        for job in (running, waiting):
            done = wait_for(server, job, *ENDINGS)
            assert (done["status"], done["attempts"]) == ("completed", 1)
        assert done["images"][0]["seed"] == 9


def test_a_job_whose_model_is_gone(tmp_path: Path) -> None:
    """A job whose model left the catalogue fails at the next start; other jobs are kept."""
    entry = "  - {id: ID, family: ovis_image, files: {model: x}, defaults: {size: 64x64}}\n"
    models = tmp_path / "models.yaml"
    models.write_text("models:\n" + entry.replace("ID", "stays") + entry.replace("ID", "goes"))
    settings: dict[str, Any] = {"engine": "fake", "grace_seconds": 0, "models": models}
    with running_server(tmp_path, **settings) as server:
        begin(server, {**LONG, "model": "stays"})
        lost = begin(server, {**QUICK, "model": "goes"})["id"]
        kept = begin(server, {**QUICK, "model": "stays"})["id"]
        server.process.kill()
        server.process.wait()
    models.write_text("models:\n" + entry.replace("ID", "stays"))
    with running_server(tmp_path, **settings) as server:
        error = wait_for(server, lost, *ENDINGS)["error"]
        assert error["reason"] == "model_unavailable"
        assert "'goes' is not in the catalogue" in error["message"]
        httpx2.post(f"{server.url}/v1/jobs/{kept}/cancel")
        assert wait_for(server, kept, *ENDINGS)["status"] == "cancelled"
        assert server.is_ready()


def test_nothing_accepted_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Every accepted job completes once after kill -9 at three moments."""
    lost: set[str] = set()
    for moment in (0.05, 0.3, 0.6):
        with running_server(tmp_path, engine="fake") as server:
            lost |= {begin(server, {**QUICK, "prompt": "step=0.05"})["id"] for _ in range(4)}
            time.sleep(moment)
            server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as server:
        ended = [wait_for(server, job, *ENDINGS) for job in lost]
        assert {job["status"] for job in ended} == {"completed"}
        assert all(len(job["images"]) == 1 for job in ended)
        assert all(httpx2.get(job["images"][0]["url"]).status_code == 200 for job in ended)
        files = [path.stem for path in (tmp_path / "data" / "images").iterdir()]
        assert sorted(files) == sorted(j["images"][0]["url"].split("/")[-2] for j in ended)
        assert [*(tmp_path / "data" / "inputs").iterdir()] == []


def test_a_server_that_dies_twice_in_a_job_gives_it_up(tmp_path: Path) -> None:
    """A job that is running when the server dies twice fails, because it may be the cause."""
    job = ""
    for _ in range(2):
        with running_server(tmp_path, engine="fake") as server:
            job = job or begin(server, ENDLESS)["id"]
            wait_for(server, job, "running")
            server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as server:
        failed = look(server, job)
        assert (failed["status"], failed["error"]["reason"]) == ("failed", "interrupted")


def test_a_reader_hears_of_a_job_that_died_with_the_server(tmp_path: Path) -> None:
    """A reader gets the failure of a job that ended with the server, under a higher number."""
    with running_server(tmp_path, engine="fake") as server:
        call = Call(server, {**LONG, "stream": True})
        job = next(call.events())["job_id"]
        with EventStream(server, f"/v1/jobs/{job}/events") as stream:
            seen = [event for event, _ in zip(stream.events(), range(8), strict=False)]
            server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as server:
        headers = {"Last-Event-ID": seen[-1].id}
        (last,) = events_of(server, job, headers)
        assert (last.name, last.data["error"]["reason"]) == ("failed", "interrupted")
        assert last.number > seen[-1].number


def test_the_pictures_of_an_edit_survive_too(tmp_path: Path) -> None:
    """The inputs of a waiting edit survive a crash, and are removed after its end."""
    files = {"image": png(64, 64, "blue")}
    with running_server(tmp_path, engine="fake") as server:
        begin(server, ENDLESS)
        answer = httpx2.post(
            f"{server.url}/v1/images/edits", data={**QUICK, "strength": "0.5"}, files=files,
            headers=ASYNC,
        )  # fmt: skip
        job = answer.json()["id"]
        assert [path.name for path in (tmp_path / "data" / "inputs").iterdir()] == [job]
        server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as server:
        for other in httpx2.get(f"{server.url}/v1/jobs").json()["data"]:
            if other["id"] != job:
                httpx2.delete(other["status_url"], timeout=20)
        assert wait_for(server, job, *ENDINGS)["status"] == "completed"
        assert [*(tmp_path / "data" / "inputs").iterdir()] == []


def test_an_edit_whose_pictures_are_gone(fake_server: ServerProcess) -> None:
    """An edit whose inputs were deleted while it waited fails with an error."""
    running = begin(fake_server, ENDLESS)
    answer = httpx2.post(
        f"{fake_server.url}/v1/images/edits", data=QUICK, files={"image": png(64, 64)},
        headers=ASYNC,
    )  # fmt: skip
    job = answer.json()["id"]
    (fake_server.log.parent / "data" / "inputs" / job).unlink()
    cancel(fake_server, running)
    error = wait_for(fake_server, job, "failed", "completed")["error"]
    assert (error["reason"], "were lost" in error["message"]) == ("internal_error", True)
