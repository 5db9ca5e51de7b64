"""Prompts as lists of messages, and the template that makes text of a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.config import Data, Source, Template
from rlpost.data.columns import checked_text
from rlpost.data.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "developer", "user", "assistant")
INSTRUCTING = ("system", "developer")
Messages = list[dict[str, str]]
CHAT_TEMPLATE = "chat_template.jinja"  # where transformers looks for it in a model's folder


def messages_in(what: str, value: Any) -> Messages | None:
    """The messages that a column holds, as a list or as JSON text of one; None where it holds something else.

    Args:
        what: the column, for messages.

    Raises:
        RowError: it is a list, but not of messages with a role and text; or the conversation cannot be continued.
    """
    if isinstance(value, str):
        value = _parsed(value)
        if value is None:
            return None
    if not isinstance(value, list):
        return None
    messages = [_message(f"{what}[{i}]", item) for i, item in enumerate(value)]
    if not messages:
        raise RowError(f"{what} is an empty list of messages")
    if messages[-1]["role"] in INSTRUCTING:
        raise RowError(f"{what} ends with a {messages[-1]['role']} message: there is nothing to answer")
    checked_text(f"{what}[{len(messages) - 1}].content", messages[-1]["content"])
    return messages


def completion_of(what: str, value: Any) -> str | None:
    """The text of a worked example that is given as one message of the assistant; None for what is no list.

    Raises:
        RowError: it is another list.
    """
    if not isinstance(value, list):
        return None
    messages = messages_in(what, value) or []
    if [message["role"] for message in messages] != ["assistant"]:
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(f"{what} must be text, or a list of one assistant message; its messages are of {roles}")
    return messages[0]["content"]


def asked_in(messages: Messages) -> Any:
    """What is asked, to tell problems apart by: the text of a lone turn, else the turns.

    Neither instructions nor the begin of the answer make another problem.
    """
    turns = [[m["role"], m["content"]] for m in messages if m["role"] not in INSTRUCTING]
    if len(turns) > 1 and turns[-1][0] == "assistant":
        turns = turns[:-1]
    return turns[0][1] if len(turns) == 1 else turns


def renderer(template: Template, tokenizer: PreTrainedTokenizerBase) -> Callable[[str | Messages], str]:
    """What the model reads, as a function of a prompt.

    A list of messages goes to the chat template as it is, but for `template.prompt` around its last user message;
    one that ends with an assistant's message is the begin of the answer, which the model continues.

    Raises:
        DataError: there is no chat template, it cannot be read, or it has no use for one of the arguments.
    """
    # Replaced, not formatted: braces in the prompt, and in a template that asks for \boxed{}, are only braces.
    if template.kind == "plain":
        return lambda prompt: template.prompt.replace("{prompt}", _text(prompt))
    written = chat_template(template, tokenizer)
    from jinja2 import TemplateError

    def chat(prompt: str | Messages) -> str:
        messages = _conversation(template, prompt)
        begun = messages[-1]["role"] == "assistant"
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=written,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                tokenize=False,
                **template.chat_template_kwargs,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"data.template: the chat template refuses {messages}: {error}") from error
        return str(text)

    return chat


def chat_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja template in force: of the file that is given, or else the tokenizer's.

    Raises:
        DataError: as `renderer`.
    """
    if template.chat_template is not None:
        try:
            written = Path(template.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.template.chat_template: {template.chat_template} cannot be read: {error}") from error
    elif tokenizer.chat_template is None:
        raise DataError(
            "data.template.kind is chat and this model's tokenizer has no chat template; use kind: plain, give a file "
            "as data.template.chat_template, or take a model whose tokenizer has one"
        )
    else:
        written = tokenizer.get_chat_template()
    for name in template.chat_template_kwargs:
        # Jinja takes a variable that nothing uses without a word.
        if not re.search(rf"\b{re.escape(name)}\b", written):
            raise DataError(
                f"data.template.chat_template_kwargs.{name}: the chat template has no use for {name!r}: leave it out, "
                "or look at the template for how the variable is called"
            )
    return written


def saved_template(data: Data, sources: Iterable[Source]) -> tuple[Template, str | None]:
    """The template whose chat a saved model gets: that of the sources it learned from, where they agree.

    Returns:
        the template; and where they do not agree, so that it is that of `data`, a line that says so.
    """
    used = [getattr(source, "template", None) or data.template for source in sources]
    chats = [t for t in used if t.kind == "chat"]
    if not chats:
        return data.template, None
    if all(
        (t.chat_template, t.chat_template_kwargs) == (chats[0].chat_template, chats[0].chat_template_kwargs)
        for t in chats
    ):
        return chats[0], None
    own = data.template.kind == "chat" and data.template.chat_template
    what = f"data.template.chat_template, {own}" if own else "its tokenizer's"
    return data.template, f"the sources have chat templates that differ: a saved model gets {what}"


def save_chat_template(folder: Path, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a saved model the chat template it was trained with, the arguments as its defaults.

    Nothing is written where the tokenizer's own template is used as it is.
    """
    if template.kind == "plain" or not (template.chat_template or template.chat_template_kwargs):
        return
    written = chat_template(template, tokenizer)
    # A Python literal of plain data is a Jinja literal; ASCII, so that no encoding comes between.
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {value!a} %}}{{%- endif %}}"
        for name, value in template.chat_template_kwargs.items()
    )
    if not written.startswith(defaults):
        written = defaults + written
    (folder / CHAT_TEMPLATE).write_text(written, encoding="utf-8")


def _conversation(template: Template, prompt: str | Messages) -> Messages:
    system = [{"role": "system", "content": template.system}] if template.system is not None else []
    if isinstance(prompt, str):
        return [*system, {"role": "user", "content": template.prompt.replace("{prompt}", prompt)}]
    asked = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    return [
        *system,
        *(
            {**message, "content": template.prompt.replace("{prompt}", message["content"])} if i == asked else message
            for i, message in enumerate(prompt)
        ),
    ]


def _text(prompt: str | Messages) -> str:
    assert isinstance(prompt, str), "messages are refused where the rows are read"
    return prompt


def check_messages(what: str, messages: Messages, template: Template) -> None:
    """Refuse messages that this template cannot take as they are.

    Raises:
        RowError: the template is plain; or both have a system message, of which one would be lost or both be read.
    """
    if template.kind == "plain":
        raise RowError(
            f"{what} is a list of messages: set data.template.kind: chat, or take one's text by a template such as "
            f"'{{{what}[0][content]}}'"
        )
    own = [message["role"] for message in messages if message["role"] in INSTRUCTING]
    if own and template.system is not None:
        raise RowError(
            f"{what} has a {own[0]} message of its own, and data.template.system is set too: remove one of them"
        )


def _parsed(text: str) -> list[Any] | None:
    """JSON text of a list of objects with a role; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        return value
    return None


def _message(what: str, item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise RowError(f"{what} is a {type(item).__name__}, not a message with role and content")
    given = {key: value for key, value in item.items() if value is not None and value != []}
    if {"from", "value"} <= given.keys():
        raise RowError(f"{what} has from and value; messages have role ({', '.join(ROLES)}) and content: rename them")
    if "role" not in given or "content" not in given:
        raise RowError(f"{what} has {', '.join(map(str, given)) or 'nothing'}; a message has role and content")
    role, content = given["role"], given["content"]
    if role not in ROLES:
        raise RowError(f"{what}.role is {role!r}; it must be {', '.join(ROLES)}: calls of tools are no prompts here")
    if not isinstance(content, str):
        raise RowError(
            f"{what}.content is {_kind(content)}, not text: content in parts (images, audio) is not supported"
        )
    if more := given.keys() - {"role", "content", "name"}:
        raise RowError(
            f"{what} has {', '.join(sorted(map(str, more)))} beside role and content, which is not supported"
        )
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{what}.content is not valid Unicode: {error}") from error
    return {"role": role, "content": content} | ({"name": given["name"]} if isinstance(given.get("name"), str) else {})


def _kind(value: Any) -> str:
    if isinstance(value, Sequence):
        parts = {str(part.get("type")) for part in value if isinstance(part, Mapping)}
        return f"a list of parts ({', '.join(sorted(parts))})" if parts else "a list"
    return f"a {type(value).__name__}"
