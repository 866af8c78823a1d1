"""A pickle read as plain data: its opcodes are interpreted here, and nothing that it names is imported or called.

What would import, call or build an object becomes a record of its name and arguments, with which nothing happens.
"""

import io
import pickletools
import struct
from typing import Any, NamedTuple, cast

MAX_BYTES = 16 * 2**20  # of a pickle; that of a ResNet-50 with its optimiser's state has 0.2 million
MAX_OPCODES = 1_000_000
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}


class Global(NamedTuple):
    """The name of something that a pickle would import."""

    module: str
    name: str


class Call(NamedTuple):
    """What a pickle would call, and with what."""

    function: Any
    arguments: Any


class Persistent(NamedTuple):
    """What a pickle refers to outside of itself."""

    key: Any


class Pickle(NamedTuple):
    """What a pickle holds.

    Attributes:
        value: dicts (`OrderedDict` as dict; only keys that are text or whole numbers), lists (sets, too), tuples, text,
            bytes, numbers, None, and the records of this module; any of them may be shared, and lists and dicts hold
            themselves.
        references: all that it refers to outside of itself.
        end: byte behind it.
    """

    value: Any
    references: list[Persistent]
    end: int


ORDERED_DICT = Global("collections", "OrderedDict")


def read_pickle(data: bytes, start: int = 0) -> Pickle:
    """Interprets a pickle.

    Args:
        data: the whole of it; more may follow.
        start: byte at which it begins.

    Raises:
        ValueError: it is malformed, or larger than any checkpoint needs.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"has a pickle of {len(data) / 2**20:.0f} MiB, more than any checkpoint needs")
    file, machine = io.BytesIO(data), _Machine()
    file.seek(start)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES:
                raise ValueError("it has too many opcodes")
            if opcode.name == "STOP":
                return Pickle(machine.stack.pop(), machine.references, cast(int, position) + 1)
            machine.run(opcode.name, argument)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"has a malformed pickle ({printable(str(error)[:100])})") from None
    raise ValueError("has a pickle without an end")


def printable(text: str) -> str:
    """Text out of a file as a terminal may show it: what has control characters in it comes with their codes."""
    return text if text.isprintable() else ascii(text)


class _Machine:
    """The stack of a pickle; a mark puts a new one on top."""

    def __init__(self):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Persistent] = []

    def run(self, name: str, argument: Any) -> None:
        """Does what one opcode says."""
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._replace(int(name[-1]), lambda *items: items)
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = self._above_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self._above_mark()
            self.stack.append({})
            self._set(items)
        elif name in ("SETITEM", "APPEND"):
            items = [stack.pop() for _ in range(2 if name == "SETITEM" else 1)][::-1]
            (self._set if name == "SETITEM" else self._extend)(items)
        elif name == "SETITEMS":
            self._set(self._above_mark())
        elif name in ("APPENDS", "ADDITEMS"):
            self._extend(self._above_mark())
        elif name == "GLOBAL":
            stack.append(Global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self._replace(2, _named)
        elif name in ("REDUCE", "NEWOBJ"):
            self._replace(2, _call)
        elif name == "NEWOBJ_EX":
            self._replace(3, lambda function, arguments, _: Call(function, arguments))
        elif name in ("INST", "OBJ"):
            items = self._above_mark()
            self.stack.append(Call(argument if name == "INST" else items[0], tuple(items)))
        elif name == "BUILD":  # the object stays as it is
            stack.pop()
        elif name in ("PERSID", "BINPERSID"):
            self.references.append(Persistent(argument if name == "PERSID" else stack.pop()))
            stack.append(self.references[-1])
        elif name == "POP" and stack:
            stack.pop()
        elif name in ("POP", "POP_MARK"):
            self._above_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the opcode {name} has no place in a checkpoint")

    def _above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _replace(self, count: int, make: Any) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(make(*items))

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            # a key that is a tuple of tuples of ... would take forever to hash
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in pairs if _is_key(key))

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)


def _is_key(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= 64)


def _named(module: Any, name: Any) -> Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a name is no text")
    return Global(module, name)


def _call(function: Any, arguments: Any) -> Any:
    # by type first: two records nested a million deep must never be compared
    if isinstance(function, Global) and function == ORDERED_DICT and arguments == ():
        return {}
    return Call(function, arguments)
