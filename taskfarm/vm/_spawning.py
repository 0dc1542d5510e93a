"""Starting tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.runtime.options import ResultWanted
from taskfarm.runtime.session import enter
from taskfarm.runtime.work import pack_work
from taskfarm.vm import base
from taskfarm.vm._ids import MPIHostID, MPITaskID
from taskfarm.vm._sides import spawner
from taskfarm.vm._status import view_in_use
from taskfarm.vm._task import wrap_in_environment, wrap_in_group

__all__ = ["Spawning"]

_NOTHING = int(ResultWanted.NOTHING)
_MESSAGE = int(ResultWanted.MESSAGE)
_VALUE = ResultWanted.MESSAGE | ResultWanted.VALUE


class Spawning(base.VirtualMachine):
    """The methods of `taskfarm.vm.MPI` that start tasks."""

    def spawnFunction(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        count: int | None = None,
        targetList: Iterable[base.HostID] | None = None,
        sendBack: Any = True,
    ) -> list[MPITaskID]:
        """Start `function` as a task in up to `count` free slots, lowest rank first; only on the spawner.

        Parameters
        ----------
        function : callable
            Anything that can be called: functions, lambdas, closures, bound methods, partials, also of ``__main__``.
        args, kwargs : sequence, mapping
            Its arguments. `taskfarm.ObjectId` arguments arrive as the worker's own part of the managed object. Arrays
            have left their memory when this returns.
        count : int, optional
            Number of tasks; all free slots by default, none if not positive.
        targetList : iterable of MPIHostID, optional
            Only on these hosts.
        sendBack : bool
            True sends `MsgTaskResult` and `MsgTaskExit` when the task ends; a false value only the latter; any other
            true value a result without the value.

        Returns
        -------
        list of MPITaskID
            The tasks that were started; fewer than `count` if fewer slots are free.

        Raises
        ------
        UsageError
            If something does not pickle (no slot was taken), a host is unknown, or this is not the spawner.
        """
        session = enter("spawnFunction")
        controller = session.open_controller or spawner("spawnFunction")
        if not callable(function):
            raise UsageError(f"spawnFunction: function={function!r} cannot be called")
        hosts = None if targetList is None else _host_names(targetList)
        if hosts is not None:
            controller.farm.check_hosts(hosts)
        wanted = _VALUE if sendBack is True else _MESSAGE if sendBack else _NOTHING
        packed = pack_work("spawnFunction", function, tuple(args), dict(kwargs) if kwargs else {})
        if self.mirrorList is not None or self.startupDirSuffix is not None:
            packed = wrap_in_environment(self, packed)
        assigned = controller.spawn(packed, count, hosts, wanted)
        if (view := view_in_use(session)) is not None:
            for slot in assigned:
                view.update(slot.rank)
        return [MPITaskID(rank, number) for rank, number in assigned]

    def spawnGroup(
        self,
        function: Callable[..., Any],
        nranks: int,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        targetList: Iterable[base.HostID] | None = None,
        sendBack: Any = True,
    ) -> list[MPITaskID]:
        """Start `function` as one task on exactly `nranks` free slots, of one host if any has so many; or not at all.

        They run it with the same arguments and find each other by `taskfarm.task_comm`. If one fails, so do the others.
        Each is a task with an identifier, a slot and a `MsgTaskExit` of its own. `sendBack` is about the
        `MsgTaskResult`: True sends that of the first task, ``"all"`` that of each, a false value none.

        Returns
        -------
        list of MPITaskID
            In the order of their ranks in the communicator; empty if fewer than `nranks` slots are free.

        Raises
        ------
        UsageError
            As `spawnFunction`; also if there never are `nranks` slots.
        """
        session = enter("spawnGroup")
        controller = session.open_controller or spawner("spawnGroup")
        if not callable(function):
            raise UsageError(f"spawnGroup: function={function!r} cannot be called")
        if session.isolated:
            raise UsageError(
                "spawnGroup: tasks run in processes of their own, without MPI (isolate=True); a group needs it"
            )
        hosts = None if targetList is None else _host_names(targetList)
        n_slots = sum(hosts is None or host in hosts for host in controller.hosts.values())
        if not 1 <= nranks <= n_slots:
            raise UsageError(
                f"spawnGroup: nranks={nranks} with {n_slots} slots for tasks; start the job with more ranks"
            )
        packed = pack_work("spawnGroup", function, tuple(args), dict(kwargs) if kwargs else {})
        if self.mirrorList is not None or self.startupDirSuffix is not None:
            packed = wrap_in_environment(self, packed)
        assigned = controller.spawn_group(
            lambda number, ranks: wrap_in_group(packed, number, ranks),
            nranks,
            hosts,
            lambda index: _VALUE if sendBack and (sendBack == "all" or index == 0) else _NOTHING,
        )
        if (view := view_in_use(session)) is not None:
            for slot in assigned:
                view.update(slot.rank)
        return [MPITaskID(rank, number) for rank, number in assigned]


def _host_names(targets: Iterable[object]) -> set[str]:
    names = set()
    for target in targets:
        name = target.name if isinstance(target, MPIHostID) else target
        if not isinstance(name, str):
            raise UsageError(f"spawnFunction: targetList holds {target!r}, which is not a valid MPIHostID")
        names.add(name)
    return names
