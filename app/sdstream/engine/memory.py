"""The memory that workers need: measured, or estimated by the size of the files until then.

Main memory is measured on the worker's process. Before and after a worker loads a model on a GPU,
it asks the driver for the free memory. The first number shows how much other programs leave to the
workers, and the difference is the memory of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sdstream.core.model_spec import CPU, ModelSpec
from sdstream.engine.seat import Place, Seat, gpu_of

#: Memory that a worker needs in addition to the files of its model.
_PROCESS_BYTES: Final = 150 * 2**20

#: Memory of a GPU that models do not use for weights: generating needs some for its results.
_GPU_RESERVE_BYTES: Final = 2**30


class Memory:
    """The memory of models and of GPUs, and the choice of the workers to stop.

    Args:
        file_bytes: Returns the size of a model's files.
    """

    def __init__(self, file_bytes: Callable[[ModelSpec], int]) -> None:
        self._file_bytes = file_bytes
        #: Model -> most memory that one of its workers was seen to use.
        self._seen: dict[str, int] = {}
        #: Model -> memory of the GPU that it took when it was last loaded.
        self._on_gpu: dict[str, int] = {}
        #: GPU of this machine -> memory for all of its workers, when a model was last loaded.
        self._gpus: dict[str, int] = {}

    def need(self, spec: ModelSpec) -> int:
        """Return the bytes that a worker of the model needs: measured, or estimated until then."""
        return self._seen.get(spec.id) or self._file_bytes(spec) + _PROCESS_BYTES

    def need_on_gpu(self, spec: ModelSpec) -> int:
        """Return the bytes of GPU memory that a worker of the model needs."""
        if spec.id in self._on_gpu:
            return self._on_gpu[spec.id]
        return 0 if spec.runtime.offload else self._file_bytes(spec)

    def used(self, seats: Sequence[Seat]) -> int:
        """Return the bytes that workers use now, or will use when they have loaded."""
        return sum(max(self.measure(seat), self.need(seat.spec)) for seat in seats)

    def measure(self, seat: Seat) -> int:
        """Return the memory that a worker uses now, and record the model's highest value."""
        now = seat.worker.resident_bytes
        if seat.worker.is_up:
            self._seen[seat.spec.id] = max(now, self._seen.get(seat.spec.id, 0))
        return now

    def record_load(self, seat: Seat, seats: Sequence[Seat]) -> None:
        """Record the GPU memory that a worker measured when it loaded its model.

        Args:
            seat: The worker.
            seats: All workers.
        """
        loaded = seat.worker.loaded
        if loaded is None or loaded is seat.recorded:
            return
        seat.recorded = loaded
        if seat.gpu is None or not loaded.gpu_free_bytes:
            return
        place = seat.worker.place
        here = (s for s in seats if s is not seat and s.worker.place == place)
        others = (s for s in here if s.gpu == seat.gpu and s.recorded is not None)
        if loaded.gpu_used_bytes:  # some drivers report the same free memory at all times
            self._on_gpu[seat.spec.id] = loaded.gpu_used_bytes
        self._gpus[seat.gpu] = loaded.gpu_free_bytes + sum(
            self.need_on_gpu(other.spec) for other in others
        )

    def forget(self, spec: ModelSpec) -> None:
        """Forget what was measured, because the model's entry has changed."""
        self._seen.pop(spec.id, None)
        self._on_gpu.pop(spec.id, None)

    def fits_gpu(self, spec: ModelSpec, place: Place) -> bool:
        """Return False if the model's weights alone are larger than a GPU of a machine."""
        if place.gpu_bytes is None or spec.device == CPU or spec.runtime.offload:
            return True
        return self._file_bytes(spec) <= place.gpu_bytes

    def victims(self, spec: ModelSpec, place: Place, here: Sequence[Seat]) -> list[Seat] | None:
        """Return the workers to stop so that a model fits in a place; None if it cannot fit.

        A model that is larger than all memory fits if it is alone.

        Args:
            spec: The model.
            place: The place.
            here: The workers there, without those that failed.
        """
        used, wanted, count = self.used(here), self.need(spec), len(here)
        slots = count + 1 if place.slots is None else place.slots
        # With slots, each worker has a GPU of its own.
        budget = self._gpus.get(gpu_of(spec) or "") if place.slots is None else None
        on_gpu = {s: self.need_on_gpu(s.spec) for s in here if s.gpu == gpu_of(spec)}
        if budget is None:
            on_gpu = {}
        room = (budget or 0) - _GPU_RESERVE_BYTES - self.need_on_gpu(spec) - sum(on_gpu.values())
        victims: list[Seat] = []
        for seat in sorted((s for s in here if s.idle), key=lambda s: s.used):
            is_full = used + wanted > place.budget or count >= slots
            if not is_full and (room >= 0 or not on_gpu):
                break
            if not is_full and seat not in on_gpu:
                continue  # it does not use this GPU
            victims.append(seat)
            used -= max(seat.worker.resident_bytes, self.need(seat.spec))
            count -= 1
            room += on_gpu.pop(seat, 0)
        has_room = used + wanted <= place.budget or count == 0
        return victims if has_room and count < slots and (room >= 0 or not on_gpu) else None
