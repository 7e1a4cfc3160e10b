"""The process: from options to a mounted file system, in the foreground or detached, and its clean end."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Callable, Optional

from consulfs import binding
from consulfs.assembly import Assembly
from consulfs.consulate import ConnectFailed, Consul, ConsulateException, Forbidden
from consulfs.consulate.adapters import Request
from consulfs.consulate.settings import Security, token_of
from consulfs.devagent import DevAgent, NoAgent
from consulfs.errors import OutOfTime
from consulfs.metrics import Metrics
from consulfs.mounts import CONSULFS, mounted_at
from consulfs.options import Options, settled
from consulfs.repeater import Repeater
from consulfs.source import Source
from consulfs.store.backend import Backend
from consulfs.store.patience import Patience

log = logging.getLogger(__name__)

READY = b"ready\n"


class CannotMount(RuntimeError):
    """The mount cannot be made; the message is the one line that the user sees."""


def run(source: Source, mountpoint: str, options: Options, foreground: bool) -> int:
    """Mount and serve. Detached, it returns 0 in the caller when the mount serves.

    :raises CannotMount: Consul or the mount point is not there, or the mount is refused
    """
    mountpoint = os.path.abspath(mountpoint)
    check_mountpoint(mountpoint)
    mountpoint = os.path.realpath(mountpoint)  # as the kernel calls it
    token = read_token(options)
    check_files(options)
    if foreground:
        serve(source, mountpoint, options, token, lambda: None)
        return 0
    return _detach(lambda ready: serve(source, mountpoint, options, token, ready))


def check_mountpoint(path: str) -> None:
    """:raises CannotMount: it is no directory that can be mounted on"""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise CannotMount(f"{path}: a dead mount is there; end it with: fusermount3 -uz {path}") from error
        raise CannotMount(f"{path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise CannotMount(f"{path}: not a directory")
    if _has_consulfs(path):
        raise CannotMount(f"{path}: a consulfs is mounted there already; end it with: fusermount3 -u {path}")


def _has_consulfs(path: str) -> bool:
    """Whether what is mounted at a path is ours: another over it would hide it, and `umount` end the wrong one."""
    mounted = mounted_at(os.path.realpath(path))
    return mounted is not None and mounted.kind == CONSULFS


def read_token(options: Options) -> Optional[str]:
    """The token, from the option, the file or the environment.

    :raises CannotMount: the file cannot be read
    """
    path = options["token_file"]
    if path and "token" not in options.given:
        try:
            token = token_of(path)
        except (OSError, UnicodeDecodeError) as error:
            raise CannotMount(f"token_file: {error}") from error
    else:
        token = options["token"]
    if token is not None and not (token.isascii() and token.isprintable()):
        raise CannotMount("the token has characters that none has; is there one line in the file, and no more?")
    return token


def check_files(options: Options) -> None:
    """:raises CannotMount: a file or folder for TLS is not there, which would only be told by failing connections"""
    for name, path in _security(options).files():
        if not os.path.exists(path):
            raise CannotMount(f"{name}: {path}: no such file or directory")


def serve(source: Source, mountpoint: str, options: Options, token: Optional[str], ready: Callable[[], None]) -> None:
    """Mount, serve until the mount ends, and clean up.

    :raises CannotMount: Consul is not there, or the mount is refused
    """
    with _agent(options) as port:
        if port is not None:
            source = Source("http", "127.0.0.1", port, source.prefix)
            print(f"Consul runs at http://127.0.0.1:{port}", flush=True)
        patience = Patience(options["timeout"], binding.interrupted)
        metrics = Metrics()
        with (
            _repeater(mountpoint, options) as repeater,
            closing(connection(source, options, patience.check, metrics)) as adapter,
        ):

            def client(datacenter: Optional[str]) -> Consul:
                return Consul(source.host, source.port, datacenter or options["dc"], token, source.scheme, adapter)

            def watching() -> Consul:
                own = connection(source, options, None, metrics)
                return Consul(source.host, source.port, options["dc"], token, source.scheme, own)

            backend = Backend(client(None), patience, options["consistency"])
            introduce(backend, source, token is not None)
            filesystem = Assembly(
                source, mountpoint, client, backend, patience, options, metrics, watching, repeater
            ).filesystem()
            try:
                binding.require_libfuse3()
                binding.serve(filesystem, mountpoint, mount_options(source, options), ready)
            except (RuntimeError, OSError) as error:
                raise CannotMount(f"{mountpoint}: cannot be mounted ({error})") from error


def connection(source: Source, options: Options, on_wait: Optional[Callable[[], None]], metrics: Metrics) -> Request:
    """How to reach Consul, with the TLS and the time that the options ask for; each request is counted.

    :param on_wait: called while something waits; None where it may wait undisturbed
    """
    return _security(options).adapter(source.scheme, options["timeout"], on_wait, metrics.asked)


@contextmanager
def _repeater(mountpoint: str, options: Options) -> Iterator[Optional[Repeater]]:
    """The process that repeats what others do, where that is wanted. To be made before there is any thread."""
    if settled(options)["notify"] == "off":
        yield None
        return
    with closing(Repeater(mountpoint)) as repeater:
        yield repeater


def _security(options: Options) -> Security:
    names = ("cacert", "capath", "client_cert", "client_key", "tls_server_name", "verify", "auth")
    return Security(*(options[name] for name in names))


def introduce(backend: Backend, source: Source, token_given: bool) -> None:
    """:raises CannotMount: nobody answers there, or not to this token"""
    try:
        backend.introduce(token_given)
    except (ConnectFailed, OutOfTime) as error:
        raise CannotMount(f"no Consul at {source}: {error}".rstrip(": ")) from error
    except Forbidden as error:
        raise CannotMount(f"Consul at {source} does not know this token: {error}") from error
    except (ConsulateException, ValueError) as error:
        raise CannotMount(f"Consul at {source}: {error}") from error


def mount_options(source: Source, options: Options) -> dict[str, Any]:
    """For libfuse and mount(8): what `mount` shows holds no token."""
    shown: dict[str, Any] = dict.fromkeys(options.kernel, True)
    shown["fsname"] = str(source).replace("\\", "\\\\").replace(",", "\\,")
    shown["subtype"] = "consulfs"
    shown["default_permissions"] = True
    if options["allow_other"]:
        shown["allow_other"] = True
    if options["ro"] and options["notify"] != "on":
        shown["ro"] = True  # else the kernel would let nobody repeat what others do
    return shown


def set_up_logging(options: Options, foreground: bool) -> None:
    """To stderr in the foreground; as a daemon to log_file, else to syslog where there is one."""
    handler: logging.Handler
    words = "%(levelname)s %(name)s: %(message)s"
    if options["log_file"]:
        handler = logging.FileHandler(options["log_file"])
        words = "%(asctime)s " + words  # syslog and the journal have a clock of their own
    elif foreground:
        handler = logging.StreamHandler()
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.ident = f"consulfs[{os.getpid()}]: "
    else:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(words))
    logging.basicConfig(level=options["log_level"].upper(), handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


@contextmanager
def _agent(options: Options) -> Iterator[Optional[int]]:
    """The port of a private agent, where one is asked for."""
    if not options["dev_agent"]:
        yield None
        return
    agent = DevAgent(options["consul"], options["dev_port"])
    try:
        agent.start()
    except NoAgent as error:
        raise CannotMount(str(error)) from error
    try:
        yield agent.port
    finally:
        agent.stop()


def _detach(work: Callable[[Callable[[], None]], None]) -> int:
    """Run `work` in a process of its own; return when it is ready, or say what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_child(work, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    if said == READY:
        return 0
    _, status = os.waitpid(child, 0)
    raise CannotMount(said.decode("utf-8", "replace") or f"the daemon ended with status {status}")


def _child(work: Callable[[Callable[[], None]], None], writer: int) -> int:
    waiting = True  # the caller, for a word on `writer`

    def ready() -> None:
        nonlocal waiting
        waiting = False
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        os.write(writer, READY)
        os.close(writer)

    os.setsid()
    os.chdir("/")
    try:
        work(ready)
        return 0
    except BaseException as error:
        said = str(error) if isinstance(error, CannotMount) else repr(error)
        log.error("the daemon ends: %s", said, exc_info=not isinstance(error, CannotMount))
        if waiting:
            os.write(writer, said.encode())
    return 1
