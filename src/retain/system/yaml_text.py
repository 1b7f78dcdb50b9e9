"""YAML as it is written: a key that is there twice is refused, and so is a value inside itself.

PyYAML's own loader keeps one of two equal keys, and lets a short text stand for billions of values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml

from retain.errors import first_line

LONGEST_YAML = 1_000_000
"""Characters of a YAML file; PyYAML reads some 100,000 in a second."""
LONGEST_INTEGER = 1_000
"""Characters of a whole number; Python shows no number of some thousand."""


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML lets pass: a key that is there twice, and a value inside itself.

    Of two equal keys the first would be dropped. A number and its text are equal, since a name such
    as `1` may be written as either. `1:30` is a text; to YAML 1.1 it is 90, a number in base 60.
    """

    def __init__(self, text: str, most: int | None) -> None:
        super().__init__(text)
        self._most = most
        self._open: list[Any] = []  # the anchors around; None where a value has none
        self._sizes: dict[int, int] = {}  # by the node's id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if event.anchor in self._open:
                problem = f"'*{event.anchor}' stands inside '&{event.anchor}'"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        """Composes the document, which aliases may not make larger than `most`."""
        document = super().get_single_node()
        if document is not None and self._most is not None and self._size(document) > self._most:
            problem = f"its aliases stand for more than {self._most:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=document.start_mark)
        return document

    def _size(self, node: yaml.Node) -> int:
        """How many values a node stands for, when each of its aliases is written out."""
        if id(node) not in self._sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            pairs = isinstance(node, yaml.MappingNode)
            parts = (part for item in inner for part in (item if pairs else (item,)))
            self._sizes[id(node)] = 1 + sum(map(self._size, parts))
        return self._sizes[id(node)]

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Reads a number; what would be one in base 60 is a text, and one too long is refused."""
        if ":" in node.value:
            return node.value
        if len(node.value) > LONGEST_INTEGER:
            problem = f"a number has more than {LONGEST_INTEGER:,} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        is_integer = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        self._open.append(anchor)
        node = super().compose_sequence_node(anchor)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._open.append(anchor)
        node = super().compose_mapping_node(anchor)
        self._open.pop()
        keys: set[Any] = set()
        for key_node, _ in node.value:  # here, before `<<` adds keys that may be there again
            if isinstance(key_node, yaml.ScalarNode):
                merges = key_node.tag == "tag:yaml.org,2002:merge"
                key = "<<" if merges else self.construct_object(key_node)
                if key in keys or str(key) in keys:
                    problem = f"the key '{key_node.value}' is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
                keys |= {key, str(key)}
        return node


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def parse_yaml(text: str, most: int | None = None) -> Any:
    """Parses one YAML value; every failure is raised as a YAMLError.

    A key that is there twice in a mapping is a failure, and so is a value inside itself.

    Args:
        text: of at most `LONGEST_YAML` characters.
        most: how many values there may be when aliases are written out. None leaves it to a caller
            who never walks through all of them: a few aliases can stand for billions.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"it has more than {LONGEST_YAML:,} characters")
    try:
        return yaml.load(text, Loader=partial(_Loader, most=most))  # type: ignore[arg-type]
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML leaks others, such as ValueError for the date 2020-13-45
        raise yaml.YAMLError(first_line(error)) from None
