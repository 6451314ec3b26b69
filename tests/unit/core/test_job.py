"""The job state machine, by examples and under random sequences of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sdstream.core.errors import (
    GenerationFailed,
    ImageServiceError,
    JobWasCancelled,
    Reason,
    Unavailable,
)
from sdstream.core.job import (
    TRANSITIONS,
    Completed,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobStatus,
    Loading,
    PreviewReady,
    Queued,
    Running,
)
from sdstream.core.messages import Phase, Progress
from sdstream.core.request import GenerationRequest


def job_of(n: int = 1, steps: int = 4) -> Job:
    """A job that was accepted at second 100."""
    request = GenerationRequest("m", "a b c", "", 64, 32, steps, "euler", "default", 1.0, 7, n)
    return Job("job_1", request, 100.0)


def image(index: int) -> ImageReady:
    """A finished image whose phases took 1, 2 and 3 seconds."""
    return ImageReady(ImageResult(index, 7 + index, b"png", 3, 4, 1.0, 2.0, 3.0))


def step(index: int, number: int, phase: Phase = Phase.SAMPLING) -> Progress:
    """Progress of one of the job's images."""
    return Progress("job_1", index, phase, number, 4)


def test_a_life_that_goes_well() -> None:
    """A job is queued, loading, running and completed; its events are kept in order."""
    job = job_of()
    events: list[JobEvent] = [
        Queued(1), Queued(0), Loading(), Running(), step(0, 0), step(0, 1), image(0), Completed(),
    ]  # fmt: skip
    assert all(job.apply(event, 100.0 + i) for i, event in enumerate(events))
    assert job.status is JobStatus.COMPLETED
    assert [entry.event for entry in job.entries] == events
    assert job.error() is None


def test_only_the_newest_previews_keep_their_pictures() -> None:
    """Older preview events stay without their data, so that the numbers of events do not change."""
    job = job_of(steps=150)
    job.apply(Running(), 100.0)
    for number in range(100):
        assert job.apply(PreviewReady(0, number, b"png"), 101.0)
    previews = [e.event for e in job.entries if isinstance(e.event, PreviewReady)]
    assert [event.step for event in previews] == [*range(100)]
    assert [bool(event.data) for event in previews] == [False] * 68 + [True] * 32


def test_usage_counts_what_was_measured() -> None:
    """Usage has steps per second, time per image, waiting time with encoding, and tokens."""
    job = job_of(n=2)
    for event in (Running(), image(0), image(1), Completed()):
        job.apply(event, 105.0)
    usage = job.usage()
    assert usage.generation_per_second == 2.0
    assert usage.time_per_generation_ms == 5000.0
    assert usage.time_to_process_ms == 6000.0
    assert (usage.text_tokens, usage.output_tokens) == (3, 2 * 4 * 2)


def test_completed_without_all_images_is_a_failure() -> None:
    """A job whose worker reports completion without all images has failed."""
    job = job_of(n=2)
    for event in (Running(), image(0), Completed()):
        job.apply(event, 101.0)
    assert job.status is JobStatus.FAILED
    assert isinstance(job.error(), GenerationFailed)


def test_progress_never_goes_back() -> None:
    """A repeated or lower step, such as heun's second step 0, is ignored."""
    job = job_of()
    job.apply(Running(), 100.0)
    assert job.apply(step(0, 0), 100.0)
    assert not job.apply(step(0, 0), 100.0)
    assert job.apply(step(0, 2), 100.0)
    assert not job.apply(step(0, 1), 100.0)
    assert job.apply(step(0, 4, Phase.DECODING), 100.0)


def test_errors_of_endings() -> None:
    """Each failure and cancellation has its error class and HTTP status."""
    endings: dict[JobFailed | JobCancelled, tuple[type[ImageServiceError], int]] = {
        JobFailed(Reason.WORKER_CRASHED, "x"): (GenerationFailed, 500),
        JobFailed(Reason.SHUTTING_DOWN, "x"): (Unavailable, 503),
        JobFailed(Reason.MODEL_UNAVAILABLE, "x"): (Unavailable, 503),
        JobCancelled("x"): (JobWasCancelled, 499),
    }
    for ending, (kind, status) in endings.items():
        job = job_of()
        job.apply(ending, 100.0)
        error = job.error()
        assert isinstance(error, kind)
        assert error.status == status


EVENTS = st.one_of(
    st.builds(Queued, st.integers(0, 9)),
    st.builds(Loading),
    st.builds(Running),
    st.builds(step, st.integers(0, 2), st.integers(0, 4), st.sampled_from(Phase)),
    st.builds(PreviewReady, st.integers(0, 2), st.integers(0, 4), st.just(b"png")),
    st.builds(image, st.integers(-1, 3)),
    st.builds(Completed),
    st.builds(JobFailed, st.sampled_from(Reason), st.just("x")),
    st.builds(JobCancelled, st.just("x")),
)


class JobMachine(RuleBasedStateMachine):
    """Any sequence of events leaves the job consistent."""

    def __init__(self) -> None:
        super().__init__()
        self.job = job_of(n=3)
        self.clock = 100.0
        self.ended_as: JobStatus | None = None

    @rule(event=EVENTS)
    def apply(self, event: JobEvent) -> None:
        """A rejected event changes nothing; an accepted one becomes the last entry."""
        before, entries = self.job.status, list(self.job.entries)
        self.clock += 1.0
        if self.job.apply(event, self.clock):
            assert self.job.entries[:-1] == entries
            assert type(self.job.entries[-1].event) in TRANSITIONS[before]
        else:
            assert (self.job.status, self.job.entries) == (before, entries)

    @invariant()
    def the_first_ending_stays(self) -> None:
        """A terminal status never changes."""
        if self.ended_as is None and self.job.terminal:
            self.ended_as = self.job.status
        assert self.ended_as in (None, self.job.status)

    @invariant()
    def completed_means_all_images(self) -> None:
        """A completed job has every image exactly once."""
        indexes = sorted(self.job.images)
        assert all(0 <= index < 3 for index in indexes)
        if self.job.status is JobStatus.COMPLETED:
            assert indexes == [0, 1, 2]

    @invariant()
    def errors_belong_to_bad_endings(self) -> None:
        """A job has an error exactly if it failed or was cancelled, and always has a usage."""
        bad = self.job.status in (JobStatus.FAILED, JobStatus.CANCELLED)
        assert (self.job.error() is not None) == bad
        self.job.usage()


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(max_examples=200, stateful_step_count=30)


@given(st.lists(EVENTS, max_size=40))
def test_terminal_statuses_have_no_way_out(events: list[JobEvent]) -> None:
    """After any history, an ended job rejects every event."""
    job = job_of()
    for event in [*events, JobCancelled("x")]:
        job.apply(event, 100.0)
    assert job.terminal
    assert not any(job.apply(event, 101.0) for event in events)
