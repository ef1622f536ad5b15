"""Tool loops and structured output through the official SDKs against a running pagoda, run as test_sdk.py is and with its functions.

Whatever the model is: what it must say fits, and what it says in a loop is written down here (`says`). LLM_BACKEND is the kind of backend of
the server; unset: the native engine.
"""

import json
import os
import re

import anthropic
import openai

from test_sdk import MODEL, Skipped, chat, claude, gpt, main, message, raises, text_of, user

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}, "unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer"}},
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather of a city.", "input_schema": CITY}
PING = {"name": "ping", "description": "Nothing.", "input_schema": {"type": "object", "properties": {}}}

KIND = os.environ.get("LLM_BACKEND", "")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius", "days": 2}}\n</tool_call>'
ANSWER = "Snow, 3 degrees."


def weather(city, unit, days):
    """The tool."""
    return f"{city}: {days * 1.5:.0f} degrees {unit}, snow"


def says(text):
    """Fields that make any model say this."""
    if KIND == "remote_openai":
        raise Skipped("such a service is not asked for a choice")
    return {"structured_outputs": {"choice": [text]}}


def can_constrain():
    if not gpt().models.retrieve(MODEL).model_extra["capabilities"].get("structured_output"):
        raise Skipped("the backend makes no structured output")


def check_city(value):
    assert set(value) == {"city", "unit", "days"}, value
    assert isinstance(value["city"], str) and len(value["city"]) <= 16
    assert value["unit"] in ("celsius", "fahrenheit") and type(value["days"]) is int


def claude_turn(messages, choice, stream, tools=(WEATHER, PING), **extra):
    arguments = {"model": MODEL, "max_tokens": 300, "messages": messages, "tools": list(tools), "extra_body": {"seed": 3, **extra}}
    if choice:
        arguments["tool_choice"] = choice
    if not stream:
        return claude().messages.create(**arguments)
    with claude().messages.stream(**arguments) as events:
        for _ in events:
            pass
        return events.get_final_message()


def test_anthropic_conversation():
    """A call, its execution, its result, an answer."""
    for stream in (False, True):
        messages = user("What is the weather in Oslo?")
        asked = claude_turn(messages, None, stream, **says(f"I look.\n{CALL}"))
        assert asked.stop_reason == "tool_use" and [block.type for block in asked.content] == ["text", "tool_use"], asked
        text, call = asked.content
        assert text.text.strip() == "I look." and call.name == "get_weather"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)}
        messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
        answer = claude_turn(messages, None, stream, **says(ANSWER))
        assert answer.stop_reason == "end_turn" and text_of(answer) == ANSWER
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 0
        both = claude_turn(messages, None, stream, **says(f"{CALL}\n{CALL}"))
        assert both.stop_reason == "tool_use" and len({block.id for block in both.content}) == len(both.content) == 2


def test_openai_conversation():
    for stream in (False, True):
        messages = user("What is the weather in Oslo?")
        finish, content, calls = gpt_turn(messages, "auto", stream, extra_body=says(f"I look.\n{CALL}"))
        assert finish == "tool_calls" and content.strip() == "I look." and len(calls) == 1
        id_, name, text = calls[0]
        shown = [{"id": id_, "type": "function", "function": {"name": name, "arguments": text}}]
        messages.append({"role": "assistant", "content": content, "tool_calls": shown})
        messages.append({"role": "tool", "tool_call_id": id_, "content": weather(**json.loads(text))})
        finish, content, calls = gpt_turn(messages, "auto", stream, extra_body=says(ANSWER))
        assert (finish, content, calls) == ("stop", ANSWER, [])
        finish, content, calls = gpt_turn(messages, "auto", stream, extra_body=says(f"{CALL}\n{CALL}"))
        assert finish == "tool_calls" and len({call[0] for call in calls}) == 2


def test_reasoning_in_a_service_s_text():
    """The model's template knows no reasoning: here its tags are text, and in front of a service that gives text they are found."""
    raw = says("<think>\nhm\n</think>\n\n42")
    for stream in (False, True):
        answer = claude_turn(user(), None, stream, **raw)
        types = [block.type for block in answer.content]
        if KIND == "vllm_remote":
            assert types == ["thinking", "text"] and answer.content[0].thinking == "hm" and answer.content[1].text == "42", answer
        else:
            assert types == ["text"] and answer.content[0].text.startswith("<think>"), answer


def test_anthropic_tool_loop():
    can_constrain()
    for stream in (False, True):
        messages = user("What is the weather in Oslo?")
        answer = claude_turn(messages, {"type": "tool", "name": "get_weather"}, stream)
        assert answer.stop_reason == "tool_use" and [block.type for block in answer.content] == ["tool_use"]
        call = answer.content[0]
        assert call.name == "get_weather" and call.id
        check_city(call.input)
        messages.append({"role": "assistant", "content": answer.content})
        messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "3 degrees, snow"}]})
        again = claude_turn(messages, {"type": "any", "disable_parallel_tool_use": True}, stream)
        calls = [block for block in again.content if block.type == "tool_use"]
        assert again.stop_reason == "tool_use" and len(calls) == len(again.content) == 1
        final = claude_turn(messages, {"type": "none"}, stream)
        assert final.stop_reason in ("end_turn", "max_tokens")
        assert all(block.type == "text" for block in final.content)
        several = claude_turn(messages, {"type": "any"}, stream)
        assert {block.type for block in several.content} == {"tool_use"} and len({block.id for block in several.content}) == len(several.content)


def test_anthropic_output_format():
    can_constrain()
    body = {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}
    check_city(json.loads(text_of(message(max_tokens=300, extra_body=body))))
    with claude().messages.stream(model=MODEL, max_tokens=300, messages=user(), extra_body=body) as stream:
        check_city(json.loads("".join(stream.text_stream)))
    error = raises(anthropic.BadRequestError, lambda: message(extra_body={"output_format": {"type": "json_schema", "schema": {"not": {}}}}))
    assert "not" in str(error)


def function(tool):
    return {"type": "function", "function": {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}}


def gpt_turn(messages, choice, stream, **extra):
    """The assistant's message, put together from chunks where it is streamed."""
    tools = [function(WEATHER), function(PING)]
    arguments = {"model": MODEL, "max_tokens": 300, "messages": messages, "tools": tools, "tool_choice": choice, "seed": 3, **extra}
    answer = gpt().chat.completions.create(stream=stream, **arguments)
    if not stream:
        choice = answer.choices[0]
        calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        return choice.finish_reason, choice.message.content, calls
    finish, content, calls = None, "", []
    for chunk in answer:
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        content += choice.delta.content or ""
        for delta in choice.delta.tool_calls or []:
            if delta.id:
                assert delta.index == len(calls) and delta.type == "function"
                calls.append([delta.id, delta.function.name, ""])
            calls[delta.index][2] += delta.function.arguments or ""
    return finish, content or None, [tuple(call) for call in calls]


def test_openai_tool_loop():
    can_constrain()
    for stream in (False, True):
        messages = user("What is the weather in Oslo?")
        finish, content, calls = gpt_turn(messages, {"type": "function", "function": {"name": "get_weather"}}, stream)
        assert finish in ("tool_calls", "stop") and content is None and [name for _, name, _ in calls] == ["get_weather"]
        check_city(json.loads(calls[0][2]))
        shown = [{"id": id_, "type": "function", "function": {"name": name, "arguments": text}} for id_, name, text in calls]
        messages.append({"role": "assistant", "content": None, "tool_calls": shown})
        messages.append({"role": "tool", "tool_call_id": calls[0][0], "content": "3 degrees, snow"})
        finish, content, calls = gpt_turn(messages, "required", stream, parallel_tool_calls=False)
        assert finish == "tool_calls" and len(calls) == 1
        finish, _, calls = gpt_turn(messages, "none", stream)
        assert finish in ("stop", "length") and not calls


def test_openai_forced_choices():
    can_constrain()
    answer = chat(tools=[function(WEATHER)], tool_choice="required", n=3, temperature=1, seed=5, max_tokens=300)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            check_city(json.loads(call.function.arguments))


def test_openai_response_format():
    can_constrain()
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    check_city(json.loads(chat(response_format=schema, max_tokens=300).choices[0].message.content))
    chunks = chat(response_format=schema, max_tokens=300, stream=True)
    check_city(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)))
    if KIND != "remote_openai":
        body = {"structured_outputs": {"choice": ["left", "right"]}}
        assert chat(extra_body=body).choices[0].message.content in ("left", "right")
        assert re.fullmatch(r"\d{3}", chat(extra_body={"guided_regex": r"\d{3}"}).choices[0].message.content)
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    error = raises(openai.BadRequestError, lambda: chat(response_format=wrong))
    assert "uniqueItems" in str(error) and error.param and "response_format" in error.param


if __name__ == "__main__":
    main(globals())
