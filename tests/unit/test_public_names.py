"""The public names are exactly the documented ones."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

TASKFARM = [
    "Executor",
    "ExecutorBrokenError",
    "InternalError",
    "ObjectId",
    "Pool",
    "ProtocolError",
    "RankFailure",
    "RemoteError",
    "Shared",
    "TaskTimeoutError",
    "TaskfarmError",
    "UsageError",
    "WorkerLostError",
    "__version__",
    "as_completed",
    "share",
    "shared_array",
    "task_comm",
    "wait",
]

FUTURES = [
    "ALL_COMPLETED",
    "AsyncResult",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "ExecutorBrokenError",
    "ExecutorView",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "Future",
    "InvalidStateError",
    "JournalError",
    "MPICommExecutor",
    "MPIPoolExecutor",
    "Pool",
    "ProcessPoolExecutor",
    "TaskOptions",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "collect",
    "compose",
    "get_comm_workers",
    "register_joblib_backend",
    "task_comm",
    "wait",
]

OBJECTS = [
    "ObjectId",
    "Rank0ObjectId",
    "RemoteError",
    "broadcast_array",
    "call",
    "call_all",
    "comm",
    "event_loop",
    "event_loop_settings",
    "finished",
    "function_call",
    "function_call_manage",
    "gather_rows",
    "get_object",
    "import_module",
    "launch_event_loop",
    "manage_object",
    "map_nested",
    "method_call",
    "method_call_manage",
    "mpi_info",
    "on_error",
    "parallel",
    "quit",
    "rank",
    "rank0",
    "remove_object",
    "run_code",
    "scatter_rows",
    "size",
    "time_limit",
]
# Read from the session whenever they are looked up; looking starts MPI.
OBJECTS_LIVE = {"comm", "finished", "parallel", "rank", "rank0", "size"}
# Not public, but callers of the original look at them.
OBJECTS_PRIVATE = {"_managed_objects", "_object_counter", "_event_loop_running"}

VM_BASE = [
    "HostID",
    "Msg",
    "MsgHostAdd",
    "MsgHostDelete",
    "MsgTaskExit",
    "MsgTaskResult",
    "ParallelLocalStorage",
    "ParallelMirroredStorage",
    "TaskID",
    "VirtualMachine",
    "getNumberOfCores",
    "localStorageCleaner",
    "translateToAbstractPath",
    "translateToActualPath",
]
VM = sorted([*VM_BASE, "MPI", "MPIHostID", "MPITaskID"])
VM_LIVE = {"ParallelLocalStorage", "ParallelMirroredStorage"}

MODULES = {
    "taskfarm": (TASKFARM, set()),
    "taskfarm.futures": (FUTURES, set()),
    "taskfarm.objects": (OBJECTS, OBJECTS_LIVE),
    "taskfarm.vm": (VM, VM_LIVE),
    "taskfarm.vm.base": (VM_BASE, VM_LIVE),
}

# The methods of the virtual machine that callers use, and those of them that need no object.
VM_METHODS = {
    "checkForIncoming",
    "cleanupEnvironment",
    "clearLocalStorage",
    "createLocalStorage",
    "desc2func",
    "finalize",
    "formatSpawnerConfig",
    "freeSlots",
    "freeSlotsSet",
    "func2desc",
    "hostID",
    "hosts",
    "hostsWithFreeSlots",
    "localStoragePath",
    "parentTaskID",
    "prepareEnvironment",
    "receiveMessage",
    "sendMessage",
    "setWorkerDebug",
    "slots",
    "spawnFunction",
    "spawnGroup",
    "spawnerBarrier",
    "taskID",
}
VM_STATIC = {
    "finalize",
    "freeSlots",
    "hostID",
    "hosts",
    "parentTaskID",
    "slots",
    "spawnerBarrier",
    "taskID",
}

SIGNATURES = {
    "taskfarm.objects:call": "(fn, /, *args, **kwargs)",
    "taskfarm.objects:call_all": "(fn, /, *args, **kwargs)",
    "taskfarm.vm:MPI": (
        "(debug=0, startupDir=None, translateStartupDir=True, mirrorMap=None, persistentStorage=False, isolate=False)"
    ),
    "taskfarm.vm:MPI.spawnFunction": (
        "(self, function, args=(), kwargs={}, count=None, targetList=None, sendBack=True)"
    ),
    "taskfarm.vm:MPI.receiveMessage": "(timeout=-1.0, fromDestination=None)",
    "taskfarm.vm:MPI.checkForIncoming": "(fromDestination=None)",
    "taskfarm.vm:MPI.sendMessage": "(destination, message)",
    "taskfarm.vm:MPI.spawnerBarrier": "(timeout=-1.0)",
    "taskfarm.vm:MPI.clearLocalStorage": "(self, timeout=-1.0)",
    "taskfarm.vm:MPI.hostID": "(taskID=None)",
    "taskfarm.vm:MPI.cleanupEnvironment": "(self, path, forceCleanup=False)",
}


def public(module: ModuleType) -> set[str]:
    """Names that a user sees in a module: without underscore, no submodule and nothing imported for its own use."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and name not in ("annotations", "Any", "TYPE_CHECKING")
    }


@pytest.mark.parametrize(("name", "names", "live"), [(k, *v) for k, v in MODULES.items()], ids=MODULES.keys())
def test_names_are_the_documented_ones(name: str, names: list[str], live: set[str]) -> None:
    """``__all__`` is the documented list, without doubles, and every name can be had."""
    module = importlib.import_module(name)
    assert sorted(module.__all__) == names
    for present in set(names) - live:
        assert hasattr(module, present)


@pytest.mark.parametrize("name", ["taskfarm", "taskfarm.futures", "taskfarm.objects", "taskfarm.vm"])
def test_nothing_else_is_public(name: str) -> None:
    """What stands in a face and is not documented has an underscore."""
    module = importlib.import_module(name)
    helpers = {"watch_for_host", "LIVE"}
    assert public(module) - helpers <= set(MODULES[name][0])


def test_live_names_of_objects() -> None:
    """Every live attribute, also those that only the original documents, is read when it is looked up."""
    from taskfarm.objects._live import LIVE

    assert set(LIVE) == OBJECTS_LIVE | OBJECTS_PRIVATE
    module = importlib.import_module("taskfarm.objects")
    assert set(dir(module)) >= OBJECTS_LIVE | OBJECTS_PRIVATE
    assert not any(name in vars(module) for name in LIVE)


@pytest.mark.parametrize("name", ["taskfarm", "taskfarm.objects", "taskfarm.vm", "taskfarm.vm.base"])
def test_other_names_are_attribute_errors(name: str) -> None:
    """A name that is not there is an `AttributeError` as everywhere, so that ``hasattr`` and imports work."""
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_that_name'"):
        _ = module.nothing_of_that_name


def test_methods_of_the_virtual_machine() -> None:
    """The class has every documented method; those that are called on the class are static."""
    machine = importlib.import_module("taskfarm.vm").MPI
    assert {name for name in dir(machine) if not name.startswith("_")} >= VM_METHODS | {"vmStatus"}
    for name in VM_STATIC:
        assert isinstance(inspect.getattr_static(machine, name), staticmethod), name


@pytest.mark.parametrize(("path", "parameters"), SIGNATURES.items(), ids=SIGNATURES.keys())
def test_signatures_of_the_contract(path: str, parameters: str) -> None:
    """Names, order and defaults of parameters are those that callers of the originals use."""
    module, _, qualname = path.partition(":")
    found = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == parameters
