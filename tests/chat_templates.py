"""Chat templates of the kinds that LLaMA checkpoints carry, written for the tests."""

from __future__ import annotations

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set opening = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {% set turns = messages[1:] %}
{% else %}
    {% set opening = '' %}
    {% set turns = messages %}
{% endif %}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 is divisibleby 2) %}
        {{ raise_exception('user and assistant must take turns') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {%- set asked = (opening if loop.first else '') + message['content'].strip() %}
        {{- bos_token + '[INST] ' + asked + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- macro header(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- set system = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- if tools or system %}
    {{- header('system') + 'Today is ' + date_string + '.\\n' + system }}
    {%- if tools %}
        {{- '\\nYou may call:\\n' }}
        {%- for tool in tools %}
            {{- tool | tojson(indent=4) + '\\n' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role == 'tool' %}
        {{- header('ipython') + message.content | tojson + '<|eot_id|>' }}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {{- header('assistant') + '<|python_tag|>' + call.function | tojson + '<|eom_id|>' }}
        {%- endfor %}
    {%- else %}
        {{- header(message.role) + message.content | trim }}<|eot_id|>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'skipped' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- generation %}{{- message['content'] }}{% endgeneration %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

THINKING = """\
{%- set ns = namespace(found=false) %}
{%- set tags = {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'} %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1] %}{% set ns.found = true %}
    {%- endif %}
    {{- bos_token if loop.first }}{{ tags[message.role] }}{{ content.replace('<|end|>', '') }}<|end|>
{%- endfor %}
{{- 'thought' if ns.found }}{% if add_generation_prompt %}<|assistant|><think>{% endif %}
"""

TOOL_USE = """\
{%- set names = tools | map(attribute='function.name') | join(', ') %}
{{- bos_token + '<|im_start|>system\\nTools: ' + names + '<|im_end|>\\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
"""

TEMPLATES = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "chatml": CHATML,
    "thinking": THINKING,
    "tool_use": TOOL_USE,
}
SPECIAL_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
LLAMA3_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & later, größer",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
SYSTEM = {"role": "system", "content": "You are a small fox. "}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "who are you?"}],
    "system": [SYSTEM, {"role": "user", "content": "  who are you?\n"}],
    "turns": [
        SYSTEM,
        {"role": "user", "content": "the quick brown fox"},
        {"role": "assistant", "content": "jumps over\n\nthe lazy dog "},
        {"role": "user", "content": 'naïve 🦙, 日本語 & <b>"quotes"</b> {{ not jinja }} {% if %}'},
    ],
}
TOOL_TURNS = [
    SYSTEM,
    {"role": "user", "content": "weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}],
    },
    {"role": "tool", "content": '{"°C": -3, "snow": true}'},
]
