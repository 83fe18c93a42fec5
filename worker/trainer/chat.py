"""Conversations as text, by a model's template: the same when it learns and when it answers."""

import json
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# For a base without a chat template: one turn a line, "Role: content", the end-of-sequence token
# after each assistant turn. Tools stand as JSON before the first turn.
PLAIN_TEMPLATE = """\
{{- bos_token if bos_token else '' -}}
{%- if tools %}{{ 'Tools: ' + (tools | tojson) + '\n' }}{% endif -%}
{%- for message in messages -%}
{{- message['role'] | capitalize + ': ' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] if message['content'] else '' -}}
{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif -%}
{{- eos_token if eos_token else '' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant: ' }}{% endif -%}
"""


def render_prompt(messages: Sequence[Row], tokenizer: Any) -> str:
    """Return a conversation as text up to where the assistant's next answer begins."""
    whole = [shaped(message) for message in messages]
    return render(tokenizer, whole, None, add_generation_prompt=True)


def render(
    tokenizer: Any, messages: list[Row], tools: Any, *, add_generation_prompt: bool = False
) -> str:
    """Return a conversation as text, by the tokenizer's template."""
    if not messages:
        return ""
    text: str = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return text


def shaped(message: Row) -> Row:
    """Return a message as templates expect it: text content, arguments as objects."""
    whole = {key: value for key, value in message.items() if key != "weight"}
    content = whole.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    whole["content"] = content or ""
    if whole.get("tool_calls"):
        whole["tool_calls"] = [_call(call) for call in whole["tool_calls"]]
    return whole


def _call(call: Row) -> Row:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        return call
    return call | {"function": function | {"arguments": arguments}}
