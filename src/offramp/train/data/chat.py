"""Conversations: what counts as one, and how one is written where a tokenizer has no template.

The plain template puts the role and a colon on a line of their own, then the content. An answer is
closed by the end token; messages are parted by one line break.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from offramp.errors import nearest

Messages = list[dict[str, str]]
ANSWERS = "assistant"

# What `plain_parts` writes, as a Jinja template for tokenizer_config.json.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == '" + ANSWERS + "' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ANSWERS + ":\\n' }}{% endif %}"
)


def check_messages(value: Any) -> Messages:
    """The conversation in a field. Raises ValueError, which says what is wrong with it."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of {{role, content}}, not {_shown(value)}")
    messages: Messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is {_shown(message)}, not {{role, content}}")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                names = [str(key) for key in message]
                hint = nearest(name, names) or f"; it has {', '.join(names) or 'nothing'}"
                raise ValueError(f"message {number} has no text {name!r}{hint}")
        messages.append({"role": message["role"], "content": message["content"]})
    if all(message["role"] != ANSWERS for message in messages):
        raise ValueError(f"no message has the role {ANSWERS!r}, so there is nothing to train on")
    return messages


def plain_parts(messages: Messages) -> Iterator[tuple[str, bool]]:
    """The plain template: texts in order, each with whether it is an answer (closed by `end`)."""
    for number, message in enumerate(messages):
        yield ("\n" if number else "") + message["role"] + ":\n", False
        yield message["content"], message["role"] == ANSWERS


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
