"""Parses strace's output about a server: operations on the store's files and answers, in the order of the kernel.

strace stops a thread where a call begins and where it ends, so that its lines are in an order that could have been seen from outside. A
write or a sync counts from its end; an answer counts from its beginning, because the client may have it before the call returns.

Strict: a line that is not understood, a call on one of the store's files that is not modelled (a rename, a mapping, fallocate), or two calls
on one file at the same time are errors. What is done to `-shm` is left out, because it does not survive a power cut, and so are the lock
and the control socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load.power_cuts.record import (
    FILES,
    Answer,
    AnyEvent,
    Create,
    Remove,
    Resize,
    Sync,
    SyncDirectory,
    Write,
)

_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_SENDS = ("write", "writev", "sendto", "sendmsg")
_SYNCS = ("fsync", "fdatasync")
_OPENS = ("open", "openat", "creat")
_REMOVES = ("unlink", "unlinkat")
_NOT_MODELLED = (
    *("openat2", "truncate", "fallocate", "sync_file_range", "rename", "renameat", "renameat2", "link", "linkat"),
    *("mmap", "sendmmsg", "sendfile", "splice", "copy_file_range"),
)
CALLS = (*_WRITES, *_SENDS, *_SYNCS, *_OPENS, *_REMOVES, *_NOT_MODELLED, "ftruncate")
COMMAND = (
    # -D: the server is our child and not strace's, so that it can be killed; -xx: no text has to be unquoted
    *("strace", "-D", "-f", "--seccomp-bpf", "-ttt", "-yy", "-xx", "-s", "16777216", "-e", "signal=SIGKILL"),
    *("-e", f"trace={','.join(dict.fromkeys(CALLS))}", "-o"),
)

_LINE = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d{6}) (?P<rest>.+)")
_BEGINS = re.compile(r"(?P<call>\w+)\((?P<arguments>.*?) *<unfinished \.\.\.>(?P<dies>\) += \?)?")
_RESUMES = re.compile(
    r"<\.\.\. (?P<call>\w+) resumed>(?P<arguments>.*)\) += (?P<result>\?|-?\d+|0x[0-9a-f]+)(?P<more>.*)"
)
_WHOLE = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>\?|-?\d+|0x[0-9a-f]+)(?P<more>.*)")
_ENDS = re.compile(r"\+\+\+ (exited with \d+|killed by SIG\w+) \+\+\+")
_DESCRIPTOR = re.compile(r"(?P<number>-?\d+)(?:<(?P<what>(?:[^<>]|->)*)>(?P<deleted>\(deleted\))?)?(?:, |$)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_TO_CLIENT = re.compile(r"TCP(?:v6)?:\[(?P<own>.+):(?P<port>\d+)->(?P<peer>.+):(?P<peer_port>\d+)\]")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


class NotUnderstood(Exception):
    """A record that cannot be relied on. The message says which line, and why."""


class Call(NamedTuple):
    """`result`: None if it never returned, because its process was killed."""

    thread: int
    at: float
    name: str
    arguments: str
    result: int | None = None
    more: str = ""


class Reader:
    """Reads the lives of one server, one after the other, at `store`, listening on `port`.

    `unsure`: the writes of the last life that were under way when it was killed.
    """

    def __init__(self, store: Path, port: int) -> None:
        self._store, self._port = str(store), port
        self._there: set[str] = set()  # files of the store
        self.unsure: list[Write | Resize] = []

    def read(self, lines: Iterable[str]) -> list[AnyEvent]:
        """Raises `NotUnderstood`."""
        self.unsure = []
        answers: dict[int, int] = {}
        events: list[AnyEvent] = []
        open_calls: dict[int, Call] = {}
        for number, line in enumerate(lines, 1):
            try:
                events += self._read_line(line.rstrip("\n"), open_calls, answers)
            except (NotUnderstood, ValueError) as problem:
                raise NotUnderstood(f"line {number}: {problem}: {line[:300]!r}") from None
        for call in open_calls.values():
            self._leave_open(call)
        return events

    def _read_line(self, line: str, open_calls: dict[int, Call], answers: dict[int, int]) -> list[AnyEvent]:
        matched = _LINE.fullmatch(line)
        if matched is None:
            raise NotUnderstood("no line of strace -f -ttt")
        thread, at, rest = int(matched["thread"]), float(matched["at"]), matched["rest"]
        if _ENDS.fullmatch(rest):
            return []
        if begins := _BEGINS.fullmatch(rest):
            call = Call(thread, at, begins["call"], begins["arguments"])
            if open_calls.setdefault(thread, call) is not call:
                raise NotUnderstood("a thread that makes two calls at once")
            return list(self._answers(call, answers))
        if resumes := _RESUMES.fullmatch(rest):
            begun = open_calls.pop(thread, None)
            if begun is None or begun.name != resumes["call"]:
                raise NotUnderstood("the end of a call without its beginning")
            arguments = begun.arguments + resumes["arguments"]
            call = begun._replace(arguments=arguments, result=_result(resumes["result"]), more=resumes["more"])
            self._require_alone(call, open_calls)
            return self._finished(call)
        if whole := _WHOLE.fullmatch(rest):
            call = Call(thread, at, whole["call"], whole["arguments"], _result(whole["result"]), whole["more"])
            self._require_alone(call, open_calls)
            return [*self._answers(call, answers), *self._finished(call)]
        raise NotUnderstood("neither a call nor the end of a process")

    def _finished(self, call: Call) -> list[AnyEvent]:
        if call.result is None:
            self._leave_open(call)
            return []
        return list(self._events(call))

    def _require_alone(self, call: Call, open_calls: dict[int, Call]) -> None:
        """Raises if two calls overlap, as their order is unknown."""
        file = self._file_of(call)
        if file is not None and any(self._file_of(other) == file for other in open_calls.values()):
            raise NotUnderstood(f"two calls at the same time on {file or 'the database'}")

    def _leave_open(self, call: Call) -> None:
        """Records calls that may or may not have happened before the process was killed."""
        file = self._file_of(call)
        if file is None or call.name in _SYNCS:
            return
        if call.name not in ("pwrite64", "ftruncate"):
            raise NotUnderstood(f"{call.name} was under way on {file or 'the database'} at a kill")
        self.unsure += [event for event in self._events(call) if isinstance(event, Write | Resize)]

    def _file_of(self, call: Call) -> str | None:
        """Returns the store's file that the call is about by its descriptor."""
        if call.name in (*_OPENS, *_REMOVES):
            return None
        found = _DESCRIPTOR.match(call.arguments)
        return None if found is None or found["deleted"] else self._ending(_text(found["what"] or ""))

    def _ending(self, path: str) -> str | None:
        if not path.startswith(self._store):
            return None
        ending = path.removeprefix(self._store)
        if ending.startswith(".corrupt-"):
            raise NotUnderstood("the server has set its store aside as damaged")
        return ending if ending in FILES else None

    def _events(self, call: Call) -> Iterator[AnyEvent]:
        if call.name in _OPENS:
            yield from self._opened(call)
        elif call.name in _REMOVES:
            if call.result == 0 and (name := self._named(call)) is not None:
                self._there.discard(name)
                yield Remove(at=call.at, file=name)
        elif call.name in _SYNCS and _is_directory(call, self._store):
            yield SyncDirectory(at=call.at)
        elif call.name in _NOT_MODELLED:
            self._refuse(call)
        elif (file := self._file_of(call)) is not None:
            yield self._changed(call, file)

    def _opened(self, call: Call) -> Iterator[AnyEvent]:
        name = self._named(call)
        if name is None or (call.result or 0) < 0:
            return
        if call.name != "openat" or "O_TRUNC" in call.arguments:
            raise NotUnderstood(f"the store is opened by {call.name}, or emptied")
        if name not in self._there:
            if "O_CREAT" not in call.arguments:
                raise NotUnderstood("a file of the store that was never made")
            self._there.add(name)
            yield Create(at=call.at, file=name)

    def _changed(self, call: Call, file: str) -> AnyEvent:
        if call.result is not None and call.result < 0:
            raise NotUnderstood(f"{call.name} failed")
        if call.name in _SYNCS:
            return Sync(at=call.at, file=file)
        if call.name == "ftruncate":
            return Resize(at=call.at, file=file, size=int(call.arguments.rpartition(", ")[2]))
        if call.name != "pwrite64":
            raise NotUnderstood(f"the store is written by {call.name}")
        data, (length, offset) = _data(call), map(int, call.arguments.split(", ")[-2:])
        if len(data) != length or call.result not in (None, length):
            raise NotUnderstood("less was written than was asked")
        return Write(at=call.at, file=file, offset=offset, data=data)

    def _refuse(self, call: Call) -> None:
        """Raises if a call that is not modelled is about a file of the store."""
        texts = [_text(found) for found in re.findall(r"(?:\\x[0-9a-f]{2})+", call.arguments)]
        names = [text.removesuffix("(deleted)") for text in texts]
        if any(self._ending(name) is not None for name in names):
            raise NotUnderstood(f"{call.name} is not modelled")

    def _named(self, call: Call) -> str | None:
        """Returns the store's file that is named by its path. The server names it by its whole path."""
        found = _STRING.search(call.arguments)
        if found is None:
            raise NotUnderstood("no path")
        return self._ending(_text(found[1]))

    def _answers(self, call: Call, answers: dict[int, int]) -> Iterator[Answer]:
        """Records the start of each answer. `answers`: the count so far, by the client's port."""
        if call.name not in _SENDS:
            return
        connection = _DESCRIPTOR.match(call.arguments)
        ends = connection and _TO_CLIENT.fullmatch(connection["what"] or "")
        if not ends or int(ends["port"]) != self._port:
            return
        if status := _STATUS.match(_data(call)):
            port = int(ends["peer_port"])
            yield Answer(at=call.at, port=port, number=answers.get(port, 0), status=int(status[1]))
            answers[port] = answers.get(port, 0) + 1


def _is_directory(call: Call, store: str) -> bool:
    found = _DESCRIPTOR.match(call.arguments)
    return found is not None and _text(found["what"] or "") == str(Path(store).parent)


def _data(call: Call) -> bytes:
    found: Sequence[tuple[str, str]] = _STRING.findall(call.arguments)
    if not found or any(cut for _, cut in found):
        raise NotUnderstood("strace has cut off what was written")
    return b"".join(bytes.fromhex(text.replace("\\x", "")) for text, _ in found)


def _text(quoted: str) -> str:
    """Returns the text of hexadecimal escapes; a socket's description has none."""
    return bytes.fromhex(quoted.replace("\\x", "")).decode() if quoted.startswith("\\x") else quoted


def _result(text: str) -> int | None:
    return None if text == "?" else int(text, 0)
